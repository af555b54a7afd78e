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

_UNKNOWN: dict[str, Any] = {
    "title": "There is no such dataset",
    "code": "unknown_dataset",
    "detail": "there is no dataset 'europarl'; there is tatoeba-en-fr",
    "errors": [{"field": "dataset", "value": "'europarl'", "allowed": "one of tatoeba-en-fr"}],
}
_WRONG_NAME: dict[str, Any] = {
    "title": "A field of the request is wrong",
    "code": "invalid_request",
    "detail": "name is '../x'; allowed is 1 to 64 of a-z, 0-9, dot, dash and underscore, the first a letter or digit",
}
_UPLOAD_EXAMPLES: dict[int, dict[str, Any]] = {
    400: {
        "title": "The body cannot be read",
        "code": "invalid_body",
        "detail": "the form ends before its last boundary: the upload was broken off",
    },
    413: {
        "title": "The body is larger than the limit",
        "code": "body_too_large",
        "detail": "the body is larger than 4,000,000,000 bytes (RECURRA_MAX_DATASET_BYTES)",
    },
    415: {
        "title": "The body's type is not supported",
        "code": "unsupported_media_type",
        "detail": "Content-Type is 'text/plain'; allowed is multipart/form-data with a boundary",
    },
    422: {
        "title": "A file of the upload cannot be used",
        "code": "unusable_data",
        "detail": "pairs, line 812: there is no TAB; source TAB target was expected",
        "errors": [{"field": "pairs", "value": "'line 812'", "allowed": "UTF-8 text: source TAB target a line, …"}],
    },
    503: {
        "title": "Too many datasets are arriving",
        "code": "too_many_uploads",
        "detail": "2 datasets are arriving; allowed is at most 2 at once (RECURRA_MAX_UPLOADS)",
    },
}
_BY_NAME = {404: _UNKNOWN, 422: _WRONG_NAME}
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
        **problems(400, 409, 413, 415, 422, 500, 503, 507, examples=_UPLOAD_EXAMPLES),
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


@router.get("/{name}", response_model=DatasetAnswer, responses=problems(404, 422, examples=_BY_NAME))
async def show_dataset(name: str, services: ServicesDep) -> DatasetAnswer:
    """A dataset: how many pairs were kept and dropped, histograms of lengths and frequencies."""
    return await _answer(services, await asyncio.to_thread(services.datasets.get, name))


@router.delete("/{name}", status_code=204, response_class=Response, responses=problems(404, 422, examples=_BY_NAME))
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
