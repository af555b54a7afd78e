"""How often a search misses the model's best translation, by how much, and what that best translation looks like.

Stahlberg and Byrne 2019, "On NMT Search Errors and Model Errors: Cat Got Your Tongue?": a *search error* is a sentence
for which a search returns something that scores less than the best there is. Exact search says which is the best, for
the sentences where its proof ends within the budget; those where it does not are counted apart and say nothing.

All searches of all sentences share the steps of one decoder. Knows no command line.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from model.bleu import corpus_bleu
from model.data.vocab import EOS_ID, SPECIALS
from model.decoding.search import DEFAULT_MAX_NODES, Hypothesis, SearchOptions, SegmentResult
from model.decoding.stepper import StepDecoder
from model.errors import InvalidValue
from model.translator import Prepared, Translator

EXACT = "exact"
_TIE = 1e-5  # scores are sums of float32: less than this apart they are the same


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of the gaps of all sentences that a search misses."""

    mean: float
    median: float
    max: float

    @classmethod
    def of(cls, gaps: Sequence[float]) -> Spread | None:
        if not gaps:
            return None
        return cls(mean=statistics.fmean(gaps), median=statistics.median(gaps), max=max(gaps))


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """One search over all sentences.

    Attributes:
        name: `greedy`, `beam 5`, `exact`.
        num_missed: proven sentences whose best translation it does not find.
        num_cut_off: of those, where it was stopped by the limit of length and has no score to compare.
        num_longer: proven sentences for which it returns more tokens than the best translation has.
        score_gap, log_prob_gap: best less found, over the others that it misses.
        mean_tokens: of its translations, proven sentences only, `<eos>` not counted.
        mean_steps, mean_nodes: network steps and partial translations extended, a sentence.
        bleu: over all texts; None without references.
        proven_bleu: over the texts all of whose sentences are proven.
    """

    name: str
    num_missed: int
    num_cut_off: int
    num_longer: int
    score_gap: Spread | None
    log_prob_gap: Spread | None
    mean_tokens: float
    mean_steps: float
    mean_nodes: float
    bleu: float | None = None
    proven_bleu: float | None = None


@dataclass(frozen=True, kw_only=True)
class Spelled:
    """A translation with the probability of each token given those before it; their product is its own."""

    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]
    log_prob: float
    score: float


@dataclass(frozen=True, kw_only=True)
class MissedSentence:
    """A sentence whose best translation greedy search does not find."""

    source: str
    greedy: Spelled
    best: Spelled


@dataclass(frozen=True, kw_only=True)
class SearchErrors:
    """What came out for one length penalty.

    Attributes:
        num_proven: sentences whose best translation is known.
        num_given_up: where the budget of nodes was spent.
        num_out_of_time: where the time was.
        num_empty: proven sentences whose best translation has no token at all.
        example: the shortest sentence that greedy misses.
    """

    length_penalty: float
    max_nodes: int
    max_seconds: float
    num_sentences: int
    num_proven: int
    num_given_up: int
    num_out_of_time: int
    num_empty: int
    seconds: float
    searches: tuple[SearchReport, ...]
    example: MissedSentence | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    translator: Translator,
    texts: Sequence[str],
    *,
    references: Sequence[Sequence[str]] | None = None,
    widths: Sequence[int] = (1, 5),
    length_penalty: float = 0.0,
    max_length: int | None = None,
    max_nodes: int = DEFAULT_MAX_NODES,
    max_seconds: float = 300.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> SearchErrors:
    """Translates every sentence with each width and with exact search, and compares.

    Args:
        references: of each text, for BLEU.
        widths: of beams; 1 is greedy.
        max_nodes: that each proof may extend.
        max_seconds: that all proofs together may take; the short sentences' come first. Beams are always finished.
        on_progress: called with searches that are done, and all there are.

    Raises:
        InvalidValue: an option, or a text without a sentence in all of them.
    """
    options = search_options(widths, length_penalty=length_penalty, max_length=max_length, max_nodes=max_nodes)
    prepared = [translator.prepare(text) for text in texts]
    segments = [ids for p in prepared for ids in p.segments]
    if not segments:
        raise InvalidValue("texts", list(texts), "at least one sentence")
    started = time.perf_counter()
    found, out_of_time = decode(translator.decoder(), segments, options, max_seconds, on_progress)
    seconds = time.perf_counter() - started
    best = [r.hypotheses[0] if r is not None and r.is_optimal else None for r in found[EXACT]]
    num_proven = sum(b is not None for b in best)
    reports = [_report(name, options[name], results, best) for name, results in found.items()]
    if references is not None:
        reports = _with_bleu(reports, translator, prepared, references, found, best)
    return SearchErrors(
        length_penalty=length_penalty,
        max_nodes=max_nodes,
        max_seconds=max_seconds,
        num_sentences=len(segments),
        num_proven=num_proven,
        num_given_up=len(segments) - num_proven - len(out_of_time),
        num_out_of_time=len(out_of_time),
        num_empty=sum(b is not None and not b.token_ids for b in best),
        seconds=seconds,
        searches=tuple(reports),
        example=_example(translator, prepared, segments, found, best),
    )


def search_options(widths: Sequence[int], *, max_nodes: int, **shared: Any) -> dict[str, SearchOptions]:
    """The searches by name, exact last: it starts from the widest beam.

    Raises:
        InvalidValue: an option.
    """
    if not widths or len(set(widths)) < len(widths):
        raise InvalidValue("k", list(widths), "beam widths, at least one and each once")
    options = {
        "greedy" if k == 1 else f"beam {k}": SearchOptions(search="greedy" if k == 1 else "beam", k=k, **shared)
        for k in sorted(widths)
    }
    return options | {EXACT: SearchOptions(search=EXACT, k=max(widths), max_nodes=max_nodes, **shared)}


# -- all searches of all sentences, in the same steps ----------------------------------------------------------------


def decode(
    decoder: StepDecoder,
    segments: Sequence[Sequence[int]],
    options: Mapping[str, SearchOptions],
    max_seconds: float,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, list[SegmentResult | None]], set[int]]:
    """Runs every search on every segment.

    Returns:
        By search a result for each segment, None where it was never begun; and the segments whose proof the time ended.
    """
    order = sorted(range(len(segments)), key=lambda i: len(segments[i]))
    queue = deque((name, i) for name in options if name != EXACT for i in order)
    queue.extend((EXACT, i) for i in order)
    num_all = len(queue)
    found: dict[str, list[SegmentResult | None]] = {name: [None] * len(segments) for name in options}
    live: dict[int, tuple[str, int]] = {}
    out_of_time: set[int] = set()
    until = math.inf  # the proofs' time begins with the first of them
    while queue or live:
        if time.perf_counter() >= until and not out_of_time:
            out_of_time = _stop_proofs(decoder, queue, live, found)
        _admit(decoder, segments, options, queue, live)
        if until == math.inf and any(name == EXACT for name, _ in live.values()):
            until = time.perf_counter() + max_seconds
        for handle, result in decoder.step():
            name, i = live.pop(handle)
            found[name][i] = result
        if on_progress is not None:
            on_progress(num_all - len(queue) - len(live), num_all)
    return found, out_of_time


def _admit(
    decoder: StepDecoder,
    segments: Sequence[Sequence[int]],
    options: Mapping[str, SearchOptions],
    queue: deque[tuple[str, int]],
    live: dict[int, tuple[str, int]],
) -> None:
    """As many as there is room for, once a quarter of the table is free: encoding one costs nearly as much as ten."""
    room = decoder.max_rows - decoder.num_rows
    if live and room < decoder.max_rows // 4:
        return
    taken: list[tuple[str, int]] = []
    while queue and (options[queue[0][0]].num_rows <= room or not (taken or live)):
        taken.append(queue.popleft())
        room -= options[taken[-1][0]].num_rows
    handles = decoder.add([(segments[i], options[name]) for name, i in taken])
    live.update(zip(handles, taken, strict=True))


def _stop_proofs(
    decoder: StepDecoder,
    queue: deque[tuple[str, int]],
    live: dict[int, tuple[str, int]],
    found: dict[str, list[SegmentResult | None]],
) -> set[int]:
    """Ends the proofs that run and drops those that wait; the segments that are left without one."""
    stopped = {i for name, i in queue if name == EXACT}
    for handle, (name, i) in list(live.items()):
        if name == EXACT:
            found[EXACT][i] = result = decoder.cut(handle)
            del live[handle]
            if result is None or not result.is_optimal:
                stopped.add(i)
    beams = [(name, i) for name, i in queue if name != EXACT]
    queue.clear()
    queue.extend(beams)
    return stopped


# -- what came out ---------------------------------------------------------------------------------------------------


def is_missed(found: Hypothesis, best: Hypothesis) -> bool:
    """Whether a search returned less than the best translation; one that was cut off is none."""
    return found.finish != "eos" or best.score > found.score + _TIE


def _report(
    name: str, options: SearchOptions, results: Sequence[SegmentResult | None], best: Sequence[Hypothesis | None]
) -> SearchReport:
    proven = [(r.hypotheses[0], b) for r, b in zip(results, best, strict=True) if r is not None and b is not None]
    missed = [(found, b) for found, b in proven if is_missed(found, b)]
    ended = [(found, b) for found, b in missed if found.finish == "eos"]
    run = [r for r in results if r is not None]
    num_nodes = [_num_nodes(options, r) for r in run]
    return SearchReport(
        name=name,
        num_missed=len(missed),
        num_cut_off=len(missed) - len(ended),
        num_longer=sum(len(found.token_ids) > len(b.token_ids) for found, b in proven),
        score_gap=Spread.of([b.score - found.score for found, b in ended]),
        log_prob_gap=Spread.of([b.log_prob - found.log_prob for found, b in ended]),
        mean_tokens=_mean([len(found.token_ids) for found, _ in proven]),
        mean_steps=_mean([r.num_steps for r in run]),
        mean_nodes=_mean(num_nodes),
    )


def _num_nodes(options: SearchOptions, result: SegmentResult) -> int:
    """Partial translations that were extended: a row in each step; of exact those of its beam first."""
    return options.k * (result.num_steps - result.num_proof_steps) + result.num_nodes


def _mean(values: Sequence[int]) -> float:
    return statistics.fmean(values) if values else 0.0


def _with_bleu(
    reports: Sequence[SearchReport],
    translator: Translator,
    prepared: Sequence[Prepared],
    references: Sequence[Sequence[str]],
    found: Mapping[str, Sequence[SegmentResult | None]],
    best: Sequence[Hypothesis | None],
) -> list[SearchReport]:
    """Exact gives the best that is known where its proof did not end, and the widest beam's where it never began."""
    *_, widest, _ = found
    starts = list(itertools.accumulate((len(p.segments) for p in prepared), initial=0))
    spans = list(itertools.pairwise(starts))
    is_proven = [all(b is not None for b in best[start:end]) for start, end in spans]
    scored: list[SearchReport] = []
    for report in reports:
        results = [r or other for r, other in zip(found[report.name], found[widest], strict=True)]
        texts = [
            translator.finish(p, [r for r in results[start:end] if r is not None]).text
            for p, (start, end) in zip(prepared, spans, strict=True)
        ]
        proven = [pair for pair, ok in zip(zip(texts, references, strict=True), is_proven, strict=True) if ok]
        bleu = corpus_bleu(texts, references)
        proven_bleu = corpus_bleu([t for t, _ in proven], [r for _, r in proven]) if proven else None
        scored.append(replace(report, bleu=bleu, proven_bleu=proven_bleu))
    return scored


# -- the example -----------------------------------------------------------------------------------------------------


def _example(
    translator: Translator,
    prepared: Sequence[Prepared],
    segments: Sequence[Sequence[int]],
    found: Mapping[str, Sequence[SegmentResult | None]],
    best: Sequence[Hypothesis | None],
) -> MissedSentence | None:
    """As Dive into Deep Learning shows by hand (10.8): the likeliest tokens are not the likeliest sentence."""
    candidates: list[tuple[bool, int, int, Hypothesis, Hypothesis]] = []
    for i, (result, b) in enumerate(zip(found.get("greedy", ()), best, strict=False)):
        if result is not None and b is not None and is_missed(result.hypotheses[0], b):
            greedy = result.hypotheses[0]
            is_blank = not (b.token_ids and greedy.token_ids and greedy.finish == "eos")
            candidates.append((is_blank, len(greedy.token_ids) + len(b.token_ids), i, greedy, b))
    if not candidates:
        return None
    _, _, i, greedy, b = min(candidates, key=lambda candidate: candidate[:3])
    sentence, at = [entry for p in prepared for entry in p.sentences][i]
    source = sentence if not at else translator.src_tokenizer.decode(list(segments[i][:-1]))
    spelled = [_spell(translator, segments[i], hypothesis) for hypothesis in (greedy, b)]
    return MissedSentence(source=source, greedy=spelled[0], best=spelled[1])


def _spell(translator: Translator, src_ids: Sequence[int], hypothesis: Hypothesis) -> Spelled:
    """Forces the translation upon the network once more, to learn what each token cost."""
    ids = (*hypothesis.token_ids, EOS_ID) if hypothesis.finish == "eos" else hypothesis.token_ids
    options = SearchOptions(search="greedy", k=1, prefix_ids=ids, max_length=len(ids), wants_attention=True)
    decoder = translator.decoder()
    decoder.add([(src_ids, options)])
    results: list[tuple[int, SegmentResult]] = []
    while not results:
        results = decoder.step()
    tokens = translator.tgt_tokenizer.tokens(hypothesis.token_ids)
    return Spelled(
        tokens=(*tokens, SPECIALS[EOS_ID])[: len(ids)],
        probabilities=tuple(math.exp(log_prob) for log_prob in results[0][1].token_log_probs),
        log_prob=hypothesis.log_prob,
        score=hypothesis.score,
    )
