"""The composition root: every part of the HTTP service is made and joined here, and nowhere else.

Start: the parts are made, the engines' threads start, and each loads and warms up its model while the server already
answers `/health/live`. Shutdown: see `lifespan`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from model.errors import RecurraError
from service.datasets.receiver import UploadReceiver
from service.datasets.store import DatasetStore
from service.dependencies import Services
from service.errors import answer_problem
from service.inference.comparison import Comparer
from service.inference.registry import Loader, Registry, load_translator
from service.inference.scoring import Scorer
from service.jobs.jobs import Jobs
from service.metrics import Metrics
from service.middleware import BodyLimit, HeadAsGet, RequestContext
from service.routers import datasets as datasets_router
from service.routers import health, models, score, train, translate
from service.settings import Settings

_DESCRIPTION = """
Self-hosted translation on recurrent networks. Texts of simultaneous requests are decoded together, and each search has
its own width. Errors are `application/problem+json` with a stable `code`; every answer carries `X-Request-ID`.
"""


def create_app(settings: Settings, *, load: Loader = load_translator, is_first: bool = True) -> FastAPI:
    """One app with its own engines and metrics; several can live in one process.

    Args:
        settings: see `service.settings`.
        load: makes a translator from a checkpoint folder; a test gives its own.
        is_first: of several processes of one service, only the first runs jobs and tidies the datasets.
    """
    metrics = Metrics()
    datasets = DatasetStore(settings.datasets_path)
    registry = Registry(settings, metrics, load)
    services = Services(
        settings=settings,
        metrics=metrics,
        registry=registry,
        jobs=Jobs(settings, metrics, datasets, registry),
        scorer=Scorer(settings.max_score_seconds),
        datasets=datasets,
        uploads=UploadReceiver(
            datasets, max_unpacked_bytes=settings.max_dataset_unpacked_bytes, max_uploads=settings.max_uploads
        ),
        comparer=Comparer(settings.max_compare_seconds),
    )
    app = FastAPIOffline(
        # Prometheus is what Recurra is watched with; asking for another watcher costs every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        title="Recurra",
        description=_DESCRIPTION,
        lifespan=_lifespan(services, is_first),
        redoc_url=None,
    )
    app.state.services = services
    routers = (translate, score, models, datasets_router, train, health)
    for router in (module.router for module in routers):
        app.include_router(router)
    app.add_api_route("/", _to_docs, include_in_schema=False)
    for expected in (RecurraError, HTTPException, RequestValidationError):
        app.add_exception_handler(expected, answer_problem)
    larger_bodies = {"/datasets": (settings.max_dataset_bytes, "RECURRA_MAX_DATASET_BYTES")}
    # The last one added is the outermost: a body past its limit is logged and counted like every other request.
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes, larger=larger_bodies)
    app.add_middleware(RequestContext, metrics=metrics)
    return app


def _lifespan(services: Services, is_first: bool) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        """The server calls the end of it when its connections are closed or its time limit is up, so that at a clean
        shutdown the engines have nothing left to do; what a hard one leaves behind fails with 503 `draining`.
        """
        services.registry.start()
        if is_first:
            await asyncio.to_thread(services.datasets.sweep)  # what a process that died left half-made
            services.jobs.start()
        yield
        await asyncio.to_thread(services.jobs.close)  # first: a job that is just being promoted needs the engines
        await asyncio.to_thread(services.registry.close)

    return lifespan


async def _to_docs() -> RedirectResponse:
    return RedirectResponse("/docs")
