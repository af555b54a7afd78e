"""Large and small scoring jobs come to the same, and a job that takes too long is ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from model.bleu import MetricScore, score
from service.errors import EngineFailure, LimitExceeded
from service.inference import scoring
from service.inference.scoring import Scorer

HYPOTHESES = ["the cat sits on the mat"] * 3
REFERENCES = [["the cat sat on the mat", "a cat sits on a mat"], ["a dog"], ["the cat sits on the mat"]]


def run(scorer: Scorer, **changes: Any) -> dict[str, MetricScore]:
    options: dict[str, Any] = {"metrics": ["bleu", "bleu-d2l"], "sentence_scores": True, **changes}
    return asyncio.run(scorer.score(HYPOTHESES, REFERENCES, **options))


def test_a_process_scores_as_this_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    here = run(Scorer(60.0))
    monkeypatch.setattr(scoring, "_SMALL_WORDS", 0)
    there = run(Scorer(60.0))
    assert {name: result.score for name, result in there.items()} == {name: r.score for name, r in here.items()}
    assert list(there["bleu"].sentence_scores) == list(here["bleu"].sentence_scores)
    assert here == score(HYPOTHESES, REFERENCES, metrics=("bleu", "bleu-d2l"))


def test_a_job_over_its_time_is_ended_and_names_the_limit() -> None:
    with pytest.raises(LimitExceeded, match="RECURRA_MAX_SCORE_SECONDS"):
        run(Scorer(0.1), metrics=["ter"])  # a process needs longer than that to start


def test_a_process_that_fails_is_an_engine_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring.sys, "executable", "/bin/false")
    with pytest.raises(EngineFailure):
        run(Scorer(60.0), metrics=["ter"])
