"""GET /models, GET /models/{name}, and what changes which version is live."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from service.dependencies import Services, ServicesDep, unless_gone
from service.inference.live import LiveModel
from service.inference.registry import Registry
from service.routers.problems import problems
from service.schemas_models import ComparisonAnswer, ModelAnswer, ModelsAnswer, PromoteBody, SwitchedAnswer

router = APIRouter(tags=["models"])

EXAMPLES: dict[str, Any] = {
    "by hand": {"value": {"version": "3f9a1c20b7de"}},
    "only if it is better": {
        "value": {
            "version": "3f9a1c20b7de",
            "reason": "trained on the legal corpus",
            "if_better": {"sources": ["I am cold."], "references": [["J'ai froid."]]},
        }
    },
}


@router.get("/models", response_model=ModelsAnswer, response_model_exclude_none=True)
async def list_models(services: ServicesDep) -> ModelsAnswer:
    """Every model on disk, served or not, and its versions; one that failed says why."""
    registry = services.registry
    answers = await asyncio.to_thread(lambda: [_answer(registry, model) for model in registry.models])
    return ModelsAnswer(models=answers)


@router.get("/models/{name}", response_model=ModelAnswer, response_model_exclude_none=True, responses=problems(404))
async def show_model(name: str, services: ServicesDep) -> ModelAnswer:
    """One model: its network, how and on what it was trained, its scores and its licence; where each version comes
    from, and when which of them was live.
    """
    model = services.registry.get(name)
    return await asyncio.to_thread(_answer, services.registry, model, is_detailed=True)


@router.post("/models/{name}/promote", response_model=SwitchedAnswer, responses=problems(404, 409, 413, 422, 507))
async def promote(
    name: str, request: Request, services: ServicesDep, body: Annotated[PromoteBody, Body(openapi_examples=EXAMPLES)]
) -> SwitchedAnswer:
    """Makes a version live, without a restart and without a request that fails or waits.

    The version is loaded and warmed up beside the one that is live; one that does not load changes nothing (409). New
    requests then go to it, running ones end on the old one, which is freed. Other servers on the same folder follow.

    With `if_better` both versions translate the test set first, and the version is promoted only where its BLEU is
    higher with p < 0.05 (paired bootstrap resampling).
    """
    if body.if_better is not None:
        body.if_better.check(services.settings)
    return await unless_gone(request, _promote(services, name, body))


async def _promote(services: Services, name: str, body: PromoteBody) -> SwitchedAnswer:
    store = services.registry.store
    candidate = await asyncio.to_thread(store.folder, name, body.version)
    live = await asyncio.to_thread(store.live, name)
    comparison: ComparisonAnswer | None = None
    if body.if_better is not None and live is not None:
        folders = {live: store.folder(name, live), body.version: candidate}
        test = body.if_better
        if live == body.version:
            return SwitchedAnswer(model=name, version=live, is_promoted=False)
        found = await services.comparer.compare(name, folders, test.sources, test.reference_lists, k=test.k)
        comparison = ComparisonAnswer.of(found)
        if not found.is_better:
            return SwitchedAnswer(model=name, version=live, is_promoted=False, comparison=comparison)
    await services.registry.promote(name, body.version, reason=body.reason)
    return SwitchedAnswer(model=name, version=body.version, is_promoted=True, comparison=comparison)


@router.post("/models/{name}/rollback", response_model=SwitchedAnswer, responses=problems(404, 409, 507))
async def rollback(name: str, services: ServicesDep) -> SwitchedAnswer:
    """Makes the version live again that was so before, the same way. Twice goes two versions back."""
    version = await services.registry.rollback(name)
    return SwitchedAnswer(model=name, version=version, is_promoted=True)


@router.delete("/models/{name}/versions/{version}", status_code=204, responses=problems(404, 409, 507))
async def delete_version(name: str, version: str, services: ServicesDep) -> None:
    """Removes a version that is not live from the disk, for good."""
    await asyncio.to_thread(services.registry.store.delete, name, version)


def _answer(registry: Registry, model: LiveModel, *, is_detailed: bool = False) -> ModelAnswer:
    versions, history = registry.on_disk(model.name)
    return ModelAnswer.of(model.facts(), versions, history if is_detailed else None)
