"""POST /translate."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from service.dependencies import ServicesDep, unless_gone
from service.routers.problems import problems
from service.schemas import TranslateAnswer, TranslateBody

router = APIRouter(tags=["translation"])

EXAMPLES: dict[str, Any] = {
    "one text": {"value": {"text": "Hello, how are you?"}},
    "several texts": {"value": {"text": ["Good morning.", "I lost my key."], "source": "en", "target": "fr"}},
    "greedy, the fastest": {"value": {"text": "Hello.", "search": "greedy"}},
    "the three best of a wide beam": {"value": {"text": "I am tired.", "k": 10, "n_best": 3}},
    "a forced start": {"value": {"text": "Good evening.", "prefix": "Bon"}},
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
        **problems(400, 404, 413, 415, 422, 500, 503),
    },
)
async def translate(
    request: Request, services: ServicesDep, body: Annotated[TranslateBody, Body(openapi_examples=EXAMPLES)]
) -> TranslateAnswer:
    """Translates a text or a list of texts; texts of simultaneous requests are decoded together.

    A text of several sentences or lines is translated sentence by sentence and put together again with its line breaks.
    A blank text comes back as it is. A caller that hangs up frees its place at once.
    """
    call = body.call(services.settings)
    model = services.registry.choose(model=body.model, source=body.source, target=body.target)
    result = await unless_gone(request, model.translate(call))
    return TranslateAnswer.of(result, call.options)
