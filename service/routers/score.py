"""POST /score."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from service.dependencies import Services, ServicesDep, unless_gone
from service.routers.problems import problems
from service.schemas import MetricAnswer, ScoreAnswer, ScoreBody

router = APIRouter(tags=["scoring"])

EXAMPLES: dict[str, Any] = {
    "translations and their references": {
        "value": {"hypotheses": ["Je suis fatigué."], "references": [["Je suis fatigué.", "Je suis épuisé."]]}
    },
    "translate, then score": {
        "value": {"sources": ["I am tired."], "references": [["Je suis fatigué."]], "model": "en-fr", "k": 5}
    },
    "the sentence BLEU of the course": {
        "value": {"hypotheses": ["A B B C D"], "references": ["A B C D E F"], "metrics": ["bleu-d2l"]}
    },
}


@router.post("/score", response_model=ScoreAnswer, responses=problems(400, 404, 413, 415, 422, 500, 503))
async def score(
    request: Request, services: ServicesDep, body: Annotated[ScoreBody, Body(openapi_examples=EXAMPLES)]
) -> ScoreAnswer:
    """Scores translations against their references; with `sources`, translates them first.

    Scores come with n-gram precisions, brevity penalty and the signature that lets others repeat them.
    """
    body.check(services.settings)
    return await unless_gone(request, _score(services, body))


async def _score(services: Services, body: ScoreBody) -> ScoreAnswer:
    facts: dict[str, Any] = {}
    hypotheses = body.hypotheses or []
    if body.sources is not None:
        call = body.call(services.settings)
        model = services.registry.choose(model=body.model, source=body.source, target=body.target)
        result = await model.translate(call)
        hypotheses = [translation.text for translation in result.translations]
        facts = {"model": result.model, "version": result.version, "hypotheses": hypotheses}
        facts |= {"search": call.options.search, "k": call.options.k}
    scores = await services.scorer.score(
        hypotheses, body.reference_lists, metrics=body.metrics, sentence_scores=body.sentence_scores
    )
    answers = {name: MetricAnswer.of(score) for name, score in scores.items()}
    return ScoreAnswer(num_sentences=len(hypotheses), scores=answers, **facts)
