"""POST /translate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event

from service.dependencies import ServicesDep, unless_gone
from service.errors import problem_of
from service.inference.live import LiveModel
from service.inference.served import TranslateCall, TranslateResult
from service.routers.problems import problems
from service.schemas import TokenEvent, TranslateAnswer, TranslateBody

router = APIRouter(tags=["translation"])

EXAMPLES: dict[str, Any] = {
    "one text": {"value": {"text": "Hello, how are you?"}},
    "several texts": {"value": {"text": ["Good morning.", "I lost my key."], "source": "en", "target": "fr"}},
    "greedy, the fastest": {"value": {"text": "Hello.", "search": "greedy"}},
    "the three best of a wide beam": {"value": {"text": "I am tired.", "k": 10, "n_best": 3}},
    "a forced start": {"value": {"text": "Good evening.", "prefix": "Bon"}},
    "a sample": {"value": {"text": "I am tired.", "search": "sample", "temperature": 0.8, "seed": 1}},
    "provably the best": {"value": {"text": "I am tired.", "search": "exact", "length_penalty": 0}},
    "with an explanation": {"value": {"text": "Hello.", "explain": True}},
    "several sentences and lines": {"value": {"text": "It is late. I am going home.\n\nSee you tomorrow."}},
}

_ANSWER_EXAMPLES: dict[str, Any] = {
    "one text": {
        "value": {
            "model": "en-fr",
            "version": "3f9a1c20b7de",
            "search": "beam",
            "k": 5,
            "translations": [
                {
                    "text": "Bonjour, comment allez-vous ?",
                    "score": -0.31,
                    "log_prob": -2.17,
                    "finish": "eos",
                    "is_optimal": None,
                    "alternatives": [],
                }
            ],
            "usage": {
                "source_tokens": 6,
                "target_tokens": 6,
                "queue_ms": 0.2,
                "encode_ms": 1.9,
                "decode_ms": 17.5,
            },
        }
    }
}


@router.post(
    "/translate",
    response_model=TranslateAnswer,
    responses={
        200: {"content": {"application/json": {"examples": _ANSWER_EXAMPLES}}},
        **problems(400, 404, 413, 415, 422, 500, 503, 504),
    },
)
async def translate(
    request: Request, services: ServicesDep, body: Annotated[TranslateBody, Body(openapi_examples=EXAMPLES)]
) -> TranslateAnswer | Response:
    """Translates a text or a list of texts; texts of simultaneous requests are decoded together.

    A text of several sentences or lines is translated sentence by sentence and put together again with its line breaks.
    A blank text comes back as it is. A caller that hangs up frees its place at once.

    With `stream` the answer is server-sent events: `token` with what of a text's translation can no longer change,
    whenever that grew; then `done` with the whole answer, or `error` with a problem.
    """
    call = body.call(services.settings)
    model = services.registry.choose(model=body.model, source=body.source, target=body.target)
    if body.stream:
        await model.open()  # a refusal is an answer of its own, not an event
        return EventSourceResponse(_events(request, model, call))
    result = await unless_gone(request, model.translate(call))
    return TranslateAnswer.of(result, call.options)


async def _events(request: Request, model: LiveModel, call: TranslateCall) -> AsyncIterator[bytes]:
    grown: asyncio.Queue[TokenEvent | None] = asyncio.Queue()
    working = asyncio.ensure_future(
        model.translate(call, lambda index, text: grown.put_nowait(TokenEvent(index=index, text=text)))
    )
    working.add_done_callback(lambda _: grown.put_nowait(None))
    try:
        while (event := await grown.get()) is not None:
            yield format_sse_event(event="token", data_str=event.model_dump_json())
        yield _last_event(request, working, call)
    finally:
        working.cancel()  # the caller went away


def _last_event(request: Request, working: asyncio.Future[TranslateResult], call: TranslateCall) -> bytes:
    error = working.exception()
    if error is None:
        answer = TranslateAnswer.of(working.result(), call.options)
        return format_sse_event(event="done", data_str=answer.model_dump_json())
    if not isinstance(error, Exception):
        raise error
    problem = bytes(problem_of(error, request).response().body).decode()
    return format_sse_event(event="error", data_str=problem)
