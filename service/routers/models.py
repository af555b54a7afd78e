"""GET /models and GET /models/{name}."""

from __future__ import annotations

from fastapi import APIRouter

from service.dependencies import ServicesDep
from service.routers.problems import problems
from service.schemas import ModelAnswer, ModelsAnswer

router = APIRouter(tags=["models"])


@router.get("/models", response_model=ModelsAnswer, response_model_exclude_none=True)
async def list_models(services: ServicesDep) -> ModelsAnswer:
    """Every checkpoint folder, served or not; one that failed says why."""
    return ModelsAnswer(models=[ModelAnswer.of(model.facts(), is_detailed=False) for model in services.registry.models])


@router.get("/models/{name}", response_model=ModelAnswer, response_model_exclude_none=True, responses=problems(404))
async def show_model(name: str, services: ServicesDep) -> ModelAnswer:
    """One model: its network, how and on what it was trained, its scores and its licence."""
    return ModelAnswer.of(services.registry.get(name).facts(), is_detailed=True)
