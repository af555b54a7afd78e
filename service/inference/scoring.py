"""Scoring in a process of its own: `python -m service.inference.scoring` reads a job as JSON and writes its scores.

The metrics are plain Python that holds the interpreter's lock. In a thread of this process they would make the engine
wait up to 5 ms (the interpreter's switch interval) after every torch call, hundreds of times a step; and a thread
cannot be ended when its caller hangs up. Small jobs, over before that is felt, are not worth the way.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

from model.bleu import MetricScore, score
from service.errors import LimitExceeded
from service.inference.subprocesses import run_module
from service.logs import EventLog

_SMALL_WORDS = 2000  # scored in about 30 ms

log = EventLog("scoring")


class Scorer:
    """Large jobs run one after another, each in a process that ends with it.

    Args:
        max_seconds: for one job; TER takes a time that grows with more than the square of a sentence's length.
    """

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._one_at_a_time = asyncio.Lock()

    async def score(
        self,
        hypotheses: Sequence[str],
        references: Sequence[Sequence[str]],
        *,
        metrics: Sequence[str],
        sentence_scores: bool,
    ) -> dict[str, MetricScore]:
        """As `model.bleu.score`. Cancelling it ends the process.

        Raises:
            InvalidValue: see `model.bleu.score`.
            LimitExceeded: it took too long.
            EngineFailure: the process failed.
        """
        num_words = sum(text.count(" ") + 1 for texts in (hypotheses, *references) for text in texts)
        job = {
            "hypotheses": hypotheses,
            "references": references,
            "metrics": metrics,
            "sentence_scores": sentence_scores,
        }
        if num_words * len(metrics) <= _SMALL_WORDS and "ter" not in metrics:
            return await asyncio.to_thread(_run, job)
        async with self._one_at_a_time:
            answer = await self._run_in_process(json.dumps(job).encode())
        return {name: MetricScore(**fields) for name, fields in json.loads(answer).items()}

    async def _run_in_process(self, job: bytes) -> bytes:
        limit = int(self._max_seconds)
        overdue = LimitExceeded("metrics", limit, limit, "seconds of work", "RECURRA_MAX_SCORE_SECONDS")
        return await run_module(__name__, job, max_seconds=self._max_seconds, overdue=overdue, log=log)


def _run(job: dict[str, Any]) -> dict[str, MetricScore]:
    return score(job["hypotheses"], job["references"], metrics=job["metrics"], sentence_scores=job["sentence_scores"])


def main() -> None:
    scores = _run(json.load(sys.stdin))
    json.dump({name: score.to_json() for name, score in scores.items()}, sys.stdout)


if __name__ == "__main__":
    main()
