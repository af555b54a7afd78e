"""GET /health/live, GET /health/ready and GET /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response

from service.dependencies import ServicesDep
from service.errors import NotReady
from service.metrics import CONTENT_TYPE
from service.routers.problems import problems
from service.schemas import LiveAnswer, ReadyAnswer

router = APIRouter(tags=["operation"])


@router.get("/health/live", response_model=LiveAnswer)
async def live() -> LiveAnswer:
    """200 as long as the process answers at all."""
    return LiveAnswer()


@router.get("/health/ready", response_model=ReadyAnswer, responses=problems(503))
async def ready(services: ServicesDep) -> ReadyAnswer:
    """200 once every model is loaded and warmed up, or was refused, and at least one is served; else 503 and why."""
    readiness = services.registry.readiness()
    if not readiness.is_ready:
        raise NotReady(readiness.reason, readiness.models)
    return ReadyAnswer(models=readiness.models)


@router.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE: {}}}})
async def metrics(services: ServicesDep) -> Response:
    """What Prometheus scrapes."""
    return Response(services.metrics.exposition(), media_type=CONTENT_TYPE)
