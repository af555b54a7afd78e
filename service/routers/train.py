"""POST /train and what belongs to a training job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Response
from fastapi.sse import EventSourceResponse, format_sse_event

from service.dependencies import Services, ServicesDep
from service.jobs import curve
from service.jobs.events import check_offset
from service.jobs.schemas import CurveAnswer, CurvePoint, JobAnswer, JobsAnswer, StateFilter, TrainBody
from service.routers.problems import problems

router = APIRouter(tags=["training"])

EXAMPLES: dict[str, Any] = {
    "half an hour": {"value": {"dataset": "tatoeba", "model": "en-fr", "preset": "small", "max_minutes": 30}},
    "fine-tune": {"value": {"dataset": "ours", "model": "en-fr", "start_from": "en-fr", "max_epochs": 3}},
    "another network": {
        "value": {
            "datasets": ["tatoeba", "ours"],
            "model": "en-fr-large",
            "preset": "luong2015",
            "overrides": {"encoder_dim": 768, "decoder_dim": 768, "dropout": 0.3},
            "dev": 0.02,
            "test": "newstest",
            "promote": "never",
        }
    },
}


@router.post(
    "/train",
    status_code=202,
    response_model=JobAnswer,
    responses={
        202: {"headers": {"Location": {"description": "of the job", "schema": {"type": "string"}}}},
        **problems(400, 404, 409, 413, 415, 422, 503),
    },
)
async def train(
    services: ServicesDep,
    response: Response,
    body: Annotated[TrainBody, Body(openapi_examples=EXAMPLES)],
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="the same key again gives the same job")
    ] = None,
) -> JobAnswer:
    """Puts a training job in the queue and answers at once.

    The job prepares its data, learns a tokenizer, trains, scores the model on sentences it has not seen, and puts it
    live where `promote` says so. It survives restarts of the service: what is done is not done again, and training goes
    on, bit for bit, where it last saved its state.
    """
    job = await asyncio.to_thread(services.jobs.submit, body, idempotency_key)
    response.headers["Location"] = f"/train/{job.id}"
    return JobAnswer.of(job, {})


@router.get("/train", response_model=JobsAnswer, responses=problems(422, 503))
async def list_jobs(
    services: ServicesDep,
    state: Annotated[StateFilter | None, Query(description="only jobs in this state")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="at most so many")] = 50,
) -> JobsAnswer:
    """The training jobs, the newest first."""
    return JobsAnswer(jobs=await asyncio.to_thread(services.jobs.find, state=state, limit=limit))


@router.get("/train/{job_id}", response_model=JobAnswer, responses=problems(404, 503))
async def show_job(job_id: str, services: ServicesDep) -> JobAnswer:
    """One job: its state, where it stands, and what came of it."""
    return await asyncio.to_thread(services.jobs.get, job_id)


@router.get(
    "/train/{job_id}/events",
    response_model=None,
    responses={200: {"content": {"text/event-stream": {}}}, **problems(404, 422, 503)},
)
async def follow_job(
    job_id: str, services: ServicesDep, last_event_id: Annotated[str | None, Header()] = None
) -> EventSourceResponse:
    """Everything that has happened in the run and what happens next, as server-sent events, until the job has ended.

    `stage`, `data`, `training`, `progress`, `evaluation`, `scores`, `evaluated`, and at last `done` with the job. A
    stream that was cut off goes on after the event whose id `Last-Event-ID` gives, on any replica.
    """
    await asyncio.to_thread(services.jobs.get, job_id)  # a refusal is an answer of its own, not an event
    path = services.jobs.run_folder(job_id).events
    offset = await asyncio.to_thread(check_offset, path, last_event_id)
    return EventSourceResponse(_events(services, job_id, offset))


async def _events(services: Services, job_id: str, offset: int) -> AsyncIterator[bytes]:
    async for event in services.jobs.follow(job_id, offset):
        if event is None:
            yield format_sse_event(comment="still there")
            continue
        offset = event.offset
        name = str(event.values.get("event"))
        yield format_sse_event(event=name, data_str=json.dumps(event.values, ensure_ascii=False), id=str(offset))
    job = await asyncio.to_thread(services.jobs.get, job_id)
    if job.state not in ("queued", "running"):  # else the service is shutting down: the caller asks another, or later
        yield format_sse_event(event="done", data_str=job.model_dump_json(), id=str(offset))


@router.get(
    "/train/{job_id}/curve", response_model=CurveAnswer, response_model_exclude_none=True, responses=problems(404)
)
async def job_curve(job_id: str, services: ServicesDep) -> CurveAnswer:
    """Loss and BLEU by step."""
    job = await asyncio.to_thread(services.jobs.get, job_id)
    points = await asyncio.to_thread(curve.curve, services.jobs.run_folder(job_id).events)
    return CurveAnswer(job=job.id, model=job.model, points=[CurvePoint(**point) for point in points])


@router.get("/train/{job_id}/curve.png", responses={200: {"content": {"image/png": {}}}, **problems(404, 500)})
async def job_picture(job_id: str, services: ServicesDep) -> Response:
    """The same as a picture."""
    job = await asyncio.to_thread(services.jobs.get, job_id)
    points = await asyncio.to_thread(curve.curve, services.jobs.run_folder(job_id).events)
    return Response(await curve.draw(f"{job.model}, job {job.id}", points), media_type="image/png")


@router.get("/train/{job_id}/log", responses={200: {"content": {"text/plain": {}}}, **problems(404)})
async def job_log(job_id: str, services: ServicesDep) -> Response:
    """What the training process wrote: warnings, and the traceback of a failure; the last MiB."""
    text = await asyncio.to_thread(services.jobs.log_text, job_id)
    return Response(text, media_type="text/plain; charset=utf-8")


@router.post("/train/{job_id}/cancel", response_model=JobAnswer, responses=problems(404, 409, 503))
async def cancel_job(job_id: str, services: ServicesDep) -> JobAnswer:
    """Takes a job out of the queue, or has it save its state and stop. It can be resumed."""
    return await asyncio.to_thread(services.jobs.cancel, job_id)


@router.post("/train/{job_id}/resume", status_code=202, response_model=JobAnswer, responses=problems(404, 409, 503))
async def resume_job(job_id: str, services: ServicesDep) -> JobAnswer:
    """Puts a job that failed or was cancelled back into the queue; it goes on where it was."""
    return await asyncio.to_thread(services.jobs.resume, job_id)
