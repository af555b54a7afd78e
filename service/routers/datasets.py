"""POST /datasets, GET /datasets, GET and DELETE /datasets/{name}."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from service.datasets.store import Dataset
from service.dependencies import Services, ServicesDep, hang_up_of
from service.errors import ClientGone
from service.routers.problems import problems
from service.schemas_datasets import FORM, DatasetAnswer, DatasetsAnswer, DatasetSummary

router = APIRouter(prefix="/datasets", tags=["datasets"])

_FORM_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}},
}


@router.post(
    "",
    response_model=DatasetAnswer,
    status_code=201,
    openapi_extra=_FORM_BODY,
    responses={
        200: {"model": DatasetAnswer, "description": "There is this dataset already, with the same content"},
        **problems(400, 409, 413, 415, 422, 500, 503, 507),
    },
)
async def upload_dataset(request: Request, response: Response, services: ServicesDep) -> DatasetAnswer:
    """Stores parallel text: one file `pairs` (TSV or TMX), or the line-aligned files `source_file` and `target_file`.

    It is checked and cleaned while it arrives, and stored whole or not at all. UTF-8, each file plain or gzip; TMX may
    also be UTF-16. The answer says what was kept, what was dropped and why, and what the pairs are made of.
    """
    content_type = request.headers.get("content-type", "")
    try:
        dataset, is_new = await services.uploads.receive(_body_of(request), content_type, lambda: hang_up_of(request))
    except ClientDisconnect as exc:
        raise ClientGone from exc
    if not is_new:
        response.status_code = 200
    response.headers["Location"] = f"/datasets/{dataset.name}"
    return await _answer(services, dataset)


@router.get("", response_model=DatasetsAnswer)
async def list_datasets(services: ServicesDep) -> DatasetsAnswer:
    """All datasets, by name."""
    datasets = await asyncio.to_thread(services.datasets.list)
    return DatasetsAnswer(datasets=[DatasetSummary.of(dataset) for dataset in datasets])


@router.get("/{name}", response_model=DatasetAnswer, responses=problems(404, 422))
async def show_dataset(name: str, services: ServicesDep) -> DatasetAnswer:
    """A dataset: how many pairs were kept and dropped, histograms of lengths and frequencies."""
    return await _answer(services, await asyncio.to_thread(services.datasets.get, name))


@router.delete("/{name}", status_code=204, response_class=Response, responses=problems(404, 422))
async def delete_dataset(name: str, services: ServicesDep) -> None:
    """Removes a dataset. The same pairs under another name stay."""
    await asyncio.to_thread(services.datasets.delete, name)


async def _body_of(request: Request) -> AsyncIterator[bytes]:
    async for piece in request.stream():
        if piece:
            yield piece


async def _answer(services: Services, dataset: Dataset) -> DatasetAnswer:
    others = await asyncio.to_thread(services.datasets.names_with_content_of, dataset)
    return DatasetAnswer.with_report(dataset, others)
