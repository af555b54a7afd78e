"""How near translations come to their references: BLEU, chrF and TER by sacreBLEU, and the sentence BLEU of the course.

Pure functions of texts; knows no model. Scores of sacreBLEU come with the signature that lets others repeat them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from model.errors import InvalidValue

_MAX_ORDER = 4


@dataclass(frozen=True, kw_only=True)
class MetricScore:
    """One metric over a list of translations.

    Attributes:
        score: of all together; 0 to 100, for `ter` 0 (best) and up, for `bleu-d2l` 0 to 1 as in the course.
        precisions: of n-grams of 1, 2, …, on the scale of the score; none for `chrf` and `ter`.
        brevity_penalty: 1 where the translations are no shorter than their references; None where the metric has none.
        hypothesis_length, reference_length: in tokens of the metric; None where it does not count them.
        signature: all settings of the metric, as sacreBLEU prints them.
        sentence_scores: the score of each translation alone, in order; none where they were not asked for.
    """

    score: float
    precisions: tuple[float, ...] = ()
    brevity_penalty: float | None = None
    hypothesis_length: int | None = None
    reference_length: int | None = None
    signature: str
    sentence_scores: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class D2lBleu:
    """The sentence BLEU of the course, from its sufficient statistics.

    Attributes:
        num_matches: for each order n, how many n-grams of the hypothesis stand in the reference, each used once.
        num_ngrams: for each order n, how many n-grams the hypothesis has. Never 0: higher orders are left out.
        hypothesis_length, reference_length: in tokens.
    """

    num_matches: tuple[int, ...]
    num_ngrams: tuple[int, ...]
    hypothesis_length: int
    reference_length: int

    @property
    def precisions(self) -> tuple[float, ...]:
        return tuple(matches / total for matches, total in zip(self.num_matches, self.num_ngrams, strict=True))

    @property
    def brevity_penalty(self) -> float:
        if self.hypothesis_length == 0:
            return 0.0
        return math.exp(min(0.0, 1.0 - self.reference_length / self.hypothesis_length))

    @property
    def score(self) -> float:
        """exp(min(0, 1 − len_ref / len_hyp)) · Π p_n^(1/2^n); 0 for an empty hypothesis."""
        return self.brevity_penalty * math.prod(math.pow(p, 0.5**n) for n, p in enumerate(self.precisions, start=1))


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def sentence_bleu_d2l(
    hypothesis: str | Sequence[str], reference: str | Sequence[str], *, k: int = _MAX_ORDER
) -> D2lBleu:
    """The course's BLEU of one sentence (Dive into Deep Learning, 10.7.6), after Papineni et al. 2002.

    Longer n-grams weigh more: 1/2^n grows the precision p_n towards 1 less for small n. Reference A B C D E F and
    hypothesis A B B C D give p_1 = 4/5, p_2 = 3/4, p_3 = 1/3, p_4 = 0.

    Args:
        hypothesis, reference: tokens, or a text that is cut at white space.
        k: the longest n-gram that counts (the course's name for it, no beam width). Shorter hypotheses count fewer.
    """
    if k < 1:
        raise InvalidValue("k", k, "a whole number from 1")
    hyp, ref = (text.split() if isinstance(text, str) else text for text in (hypothesis, reference))
    orders = range(1, min(k, len(hyp)) + 1)
    return D2lBleu(
        num_matches=tuple((_ngrams(hyp, n) & _ngrams(ref, n)).total() for n in orders),
        num_ngrams=tuple(len(hyp) - n + 1 for n in orders),
        hypothesis_length=len(hyp),
        reference_length=len(ref),
    )


def reference_streams(references: Sequence[Sequence[str]]) -> list[Any]:
    """References as sacreBLEU wants them: the n-th of every sentence in one list, None where there is none."""
    num_streams = max(map(len, references))
    return [[refs[n] if n < len(refs) else None for refs in references] for n in range(num_streams)]


def _sentence_scores(
    metric: BLEU | CHRF | TER, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, ...]:
    return tuple(metric.sentence_score(hyp, refs).score for hyp, refs in zip(hypotheses, references, strict=True))


def _bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], sentences: bool) -> MetricScore:
    metric = BLEU()
    total = metric.corpus_score(hypotheses, reference_streams(references))
    single = BLEU(effective_order=True)  # a sentence of three words has no 4-gram, and is no zero for that
    return MetricScore(
        score=min(total.score, 100.0),  # exp of a mean of logs may end a hair above
        precisions=tuple(total.precisions),
        brevity_penalty=total.bp,
        hypothesis_length=total.sys_len,
        reference_length=total.ref_len,
        signature=str(metric.get_signature()),
        sentence_scores=tuple(min(s, 100.0) for s in _sentence_scores(single, hypotheses, references))
        if sentences
        else (),
    )


def _without_precisions(
    metric: CHRF | TER, hypotheses: Sequence[str], references: Sequence[Sequence[str]], sentences: bool
) -> MetricScore:
    total = metric.corpus_score(hypotheses, reference_streams(references)).score
    signature = str(metric.get_signature())  # before the sentences: each sets the number of references in it anew
    return MetricScore(
        score=total,
        signature=signature,
        sentence_scores=_sentence_scores(metric, hypotheses, references) if sentences else (),
    )


def _chrf(hypotheses: Sequence[str], references: Sequence[Sequence[str]], sentences: bool) -> MetricScore:
    return _without_precisions(CHRF(), hypotheses, references, sentences)


def _ter(hypotheses: Sequence[str], references: Sequence[Sequence[str]], sentences: bool) -> MetricScore:
    return _without_precisions(TER(), hypotheses, references, sentences)


def _bleu_d2l(hypotheses: Sequence[str], references: Sequence[Sequence[str]], sentences: bool) -> MetricScore:
    """The course scores single sentences. Here: each against its best reference, the score their mean; precisions and
    brevity penalty are those of all n-grams and lengths taken together.
    """
    best = [
        max((sentence_bleu_d2l(hyp, ref) for ref in refs), key=lambda bleu: bleu.score)
        for hyp, refs in zip(hypotheses, references, strict=True)
    ]
    scores = tuple(bleu.score for bleu in best)
    orders = range(max(len(bleu.num_ngrams) for bleu in best))
    pooled = D2lBleu(
        num_matches=tuple(sum(bleu.num_matches[n] for bleu in best if n < len(bleu.num_matches)) for n in orders),
        num_ngrams=tuple(sum(bleu.num_ngrams[n] for bleu in best if n < len(bleu.num_ngrams)) for n in orders),
        hypothesis_length=sum(bleu.hypothesis_length for bleu in best),
        reference_length=sum(bleu.reference_length for bleu in best),
    )
    return MetricScore(
        score=math.fsum(scores) / len(scores),
        precisions=pooled.precisions,
        brevity_penalty=pooled.brevity_penalty,
        hypothesis_length=pooled.hypothesis_length,
        reference_length=pooled.reference_length,
        signature=f"refs:best|case:mixed|tok:space|k:{_MAX_ORDER}|corpus:mean",
        sentence_scores=scores if sentences else (),
    )


METRICS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]], bool], MetricScore]] = {
    "bleu": _bleu,
    "chrf": _chrf,
    "ter": _ter,
    "bleu-d2l": _bleu_d2l,
}


def _check(hypotheses: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str]) -> None:
    if isinstance(hypotheses, str) or not hypotheses:
        raise InvalidValue("hypotheses", hypotheses, "a list of at least one text")
    if isinstance(references, str) or len(references) != len(hypotheses):
        raise InvalidValue("references", references, f"a list of {len(hypotheses)} lists, one for each hypothesis")
    for i, refs in enumerate(references):
        if isinstance(refs, str) or not refs:
            raise InvalidValue(f"references[{i}]", refs, "a list of at least one text")
    if isinstance(metrics, str) or not metrics:
        raise InvalidValue("metrics", metrics, f"a list of at least one of {', '.join(METRICS)}")
    for i, name in enumerate(metrics):
        if name not in METRICS:
            raise InvalidValue(f"metrics[{i}]", name, " or ".join(METRICS))


def score(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = ("bleu",),
    sentence_scores: bool = True,
) -> dict[str, MetricScore]:
    """Scores translations against their references, with sacreBLEU's default settings.

    Args:
        hypotheses: one translation for each sentence.
        references: for each sentence all its references; their numbers may differ.
        metrics: names in `METRICS`; `ter` takes a time quadratic in the length of a sentence.
        sentence_scores: also score each sentence alone, which about doubles the work.

    Raises:
        InvalidValue: nothing to score, a sentence without a reference, lists of unequal length, an unknown metric.
    """
    _check(hypotheses, references, metrics)
    return {name: METRICS[name](hypotheses, references, sentence_scores) for name in metrics}


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """sacreBLEU's corpus BLEU alone, 0 to 100: the number that training watches and reports give."""
    return score(hypotheses, references, sentence_scores=False)["bleu"].score
