"""What routers are handed: the parts that `create_app` composed, and a wait that ends when the caller hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from service.datasets.receiver import UploadReceiver
from service.datasets.store import DatasetStore
from service.errors import ClientGone
from service.inference.comparison import Comparer
from service.inference.registry import Registry
from service.inference.scoring import Scorer
from service.jobs.jobs import Jobs
from service.metrics import Metrics
from service.settings import Settings

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts of one app; made in `create_app`, kept in its state."""

    settings: Settings
    metrics: Metrics
    registry: Registry
    scorer: Scorer
    datasets: DatasetStore
    uploads: UploadReceiver
    jobs: Jobs
    comparer: Comparer


async def services_of(request: Request) -> Services:  # `async`: else every request would wait for a thread
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(services_of)]


async def unless_gone(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of `work`, which is cancelled when the caller hangs up. The request's body must have been read.

    Raises:
        ClientGone: the caller hung up first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(hang_up_of(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


async def hang_up_of(request: Request) -> None:
    """Ends when the caller hangs up. The request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
