"""Whether a candidate is better than the live version: both translate one test set, and sacreBLEU's paired bootstrap
resampling (Koehn 2004) says how likely it is that the difference is chance.

Run as `python -m service.inference.comparison` it reads a job as JSON and writes what came out: translating a test set
in the service's own process would take its cores and its interpreter's lock from the requests. It is a process of low
priority with one thread.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.bleu import reference_streams
from model.errors import CheckpointError, InvalidValue
from service.errors import LimitExceeded, VersionRefused
from service.inference.subprocesses import run_module
from service.logs import EventLog

if TYPE_CHECKING:
    from model.translator import Translator

SIGNIFICANT = 0.05
NUM_SAMPLES = 1000
SEED = 12345  # sacreBLEU's own default
_NICENESS = 10

log = EventLog("comparison")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came out on one test set.

    Attributes:
        bleu_live, bleu_candidate: corpus BLEU, 0 to 100.
        p_value: how likely a difference at least this large is chance, by paired bootstrap; 1 where there is none.
        num_sentences: in the test set.
        signature: all settings, as sacreBLEU prints them.
    """

    bleu_live: float
    bleu_candidate: float
    p_value: float
    num_sentences: int
    signature: str

    @property
    def is_better(self) -> bool:
        """The candidate's BLEU is higher, and p < 0.05."""
        return self.bleu_candidate > self.bleu_live and self.p_value < SIGNIFICANT

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "is_better": self.is_better}


def compare(
    baseline: Sequence[str],
    candidate: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    num_samples: int = NUM_SAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Two systems' translations of the same sentences, by paired bootstrap resampling over sentences.

    Args:
        baseline, candidate: a translation of each sentence by the live version and by the candidate.
        references: for each sentence all its references; their numbers may differ.
        num_samples: test sets that are drawn, with replacement, from the sentences.
        seed: of the draws, from 1; the same seed gives the same p.

    Raises:
        InvalidValue: lists of unequal length or without a sentence, a sentence without a reference, a wrong number.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.significance import PairedTest, Result

    _check(baseline, candidate, references, num_samples, seed)
    systems: list[tuple[str, Sequence[str]]] = [("live", list(baseline)), ("candidate", list(candidate))]
    test = PairedTest(systems, {"BLEU": BLEU()}, reference_streams(references), test_type="bs", n_samples=num_samples)
    test._seed = seed  # sacreBLEU takes it from the environment only, which all threads share
    signatures, scores = test()
    live, other = (result for result in scores["BLEU"] if isinstance(result, Result))
    signatures["BLEU"].update("seed", seed)
    difference = other.score - live.score
    return Comparison(
        bleu_live=min(live.score, 100.0),  # exp of a mean of logs may end a hair above
        bleu_candidate=min(other.score, 100.0),
        # Equal systems get the least p there is from the library.
        p_value=other.p_value if difference and other.p_value is not None else 1.0,
        num_sentences=len(references),
        signature=str(signatures["BLEU"]),
    )


def _check(
    baseline: Sequence[str],
    candidate: Sequence[str],
    references: Sequence[Sequence[str]],
    num_samples: int,
    seed: int,
) -> None:
    if not references:
        raise InvalidValue("references", references, "a list of at least one sentence's references")
    for name, hypotheses in (("baseline", baseline), ("candidate", candidate)):
        if len(hypotheses) != len(references):
            allowed = f"a list of {len(references)}, one for each sentence"
            raise InvalidValue(name, f"a list of {len(hypotheses)}", allowed)
    for i, refs in enumerate(references):
        if isinstance(refs, str) or not refs:
            raise InvalidValue(f"references[{i}]", refs, "a list of at least one text")
    for name, value in (("num_samples", num_samples), ("seed", seed)):
        if value < 1:
            raise InvalidValue(name, value, "a whole number from 1")


def translate_test_set(translator: Translator, sources: Sequence[str], *, k: int = 5) -> list[str]:
    """The best translation of each source, by a beam of width k."""
    return [translation.text for translation in translator.translate(sources, k=k)]


def compare_versions(
    live: str | Path,
    candidate: str | Path,
    sources: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    k: int = 5,
    seed: int = SEED,
) -> Comparison:
    """Two checkpoint folders over one test set, in fp32: what comes out is the same on every machine.

    Raises:
        CheckpointError: one of them does not load.
        InvalidValue: see `compare`.
    """
    from model.translator import Translator

    def translations(folder: str | Path) -> list[str]:
        return translate_test_set(Translator.load(folder, device="cpu", precision="fp32"), sources, k=k)

    return compare(translations(live), translations(candidate), references, seed=seed)


class Comparer:
    """Comparisons one after another, each in a process that ends with it.

    Args:
        max_seconds: for one of them.
    """

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._one_at_a_time = asyncio.Lock()

    async def compare(
        self,
        model: str,
        folders: dict[str, Path],
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        *,
        k: int = 5,
    ) -> Comparison:
        """As `compare_versions`. Cancelling it ends the process.

        Args:
            folders: of the live version, then of the candidate, by version.

        Raises:
            VersionRefused: one of them does not load.
            LimitExceeded: it took too long.
            EngineFailure: the process failed.
        """
        live, candidate = (str(folder.resolve()) for folder in folders.values())
        job = {"live": live, "candidate": candidate, "sources": list(sources), "references": references, "k": k}
        async with self._one_at_a_time:
            answer = json.loads(await self._run_in_process(json.dumps(job).encode()))
        if "refused" in answer:
            version = next(version for version, folder in folders.items() if str(folder.resolve()) == answer["refused"])
            raise VersionRefused(model, version, answer["cause"])
        return Comparison(**answer)

    async def _run_in_process(self, job: bytes) -> bytes:
        limit = int(self._max_seconds)
        overdue = LimitExceeded("if_better", limit, limit, "seconds of work", "RECURRA_MAX_COMPARE_SECONDS")
        return await run_module(__name__, job, max_seconds=self._max_seconds, overdue=overdue, log=log)


def main() -> None:
    import torch

    os.nice(_NICENESS)
    torch.set_num_threads(1)
    job = json.load(sys.stdin)
    try:
        answer = asdict(compare_versions(**job))
    except CheckpointError as exc:
        folder = next(
            f for f in (job["candidate"], job["live"]) if exc.path.is_relative_to(f)
        )  # may be in the live one
        answer = {"refused": folder, "cause": f"{exc.path.name} {exc.cause}"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
