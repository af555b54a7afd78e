"""A loaded model that translates text: the one class to import in a notebook.

    from model import Translator
    Translator.load("checkpoints/en-fr").translate(["Hello."], k=5)

Text is split into lines and sentences, each sentence is translated on its own, all of them in one batch, and they are
put together again with the line breaks they had. Knows no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from sentencex import segment as split_sentences

from model.checkpoint import Checkpoint, load_checkpoint
from model.data.corpus import normalize
from model.data.vocab import EOS_ID, SPECIALS, UNK_ID
from model.decoding.offline import decode_all
from model.decoding.search import Finish, Hypothesis, SearchOptions, SegmentResult, TreeNode, check_fit
from model.decoding.stepper import StepDecoder
from model.errors import InvalidValue
from model.network.inference import InferenceNetwork
from model.network.packed import PACKED, check_precision, padded_rows
from model.network.seq2seq import Seq2Seq

MAX_SEGMENT_TOKENS = 250  # a longer sentence is cut: attention has seen none such, and a step's cost grows with it
PRECISIONS = ("auto", *PACKED)
DEVICES = ("auto", "cpu", "cuda")
EOS = SPECIALS[EOS_ID]
_OFFLINE_ROWS = 320
_PROBE_ROWS = 64  # auto measures steps of this many rows


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One of the n best translations that is not the best."""

    text: str
    score: float
    log_prob: float


@dataclass(frozen=True, kw_only=True)
class TreeToken:
    """A node of a beam's search tree.

    Attributes:
        parent: index of its parent; -1 for the first tokens.
        state: `live` where it was extended, `finished` where it ended, `pruned` where it fell off the beam.
    """

    parent: int
    token: str
    log_prob: float
    state: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How a translation came about. Of a text of several sentences all of it stands one after the other.

    Attributes:
        source_tokens, target_tokens: `<eos>` included.
        token_log_probs: of each target token, given those before it.
        attention: [T][S], where each target token looked; 0 outside its own sentence; empty without attention.
        unknown_source_tokens: what the vocabulary lacks, as written.
        tree: what the beam looked at, where asked.
    """

    source_tokens: tuple[str, ...]
    target_tokens: tuple[str, ...]
    token_log_probs: tuple[float, ...]
    attention: tuple[tuple[float, ...], ...]
    unknown_source_tokens: tuple[str, ...]
    tree: tuple[TreeToken, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A translated text.

    Attributes:
        text: with the line breaks of its source.
        score, log_prob: sums over its sentences.
        finish: `deadline` or `length` where a sentence was cut off, else `eos`.
        is_optimal: whether the result is proven to be the best there is; None where nothing is known.
        gap: by how much a better translation's score could be higher at most; None where nothing is known.
        explanation: where asked.
        alternatives: further translations, best first; only of a text of one sentence.
        num_source_tokens, num_target_tokens: `<eos>` not counted.
    """

    text: str
    score: float
    log_prob: float
    finish: Finish
    is_optimal: bool | None = None
    gap: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    explanation: Explanation | None = None
    num_source_tokens: int = 0
    num_target_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A text on its way to the decoder.

    Attributes:
        segments: source ids of each sentence, ended by `<eos>`.
        layout: what stands before each sentence (spaces, line breaks); one more for the end.
        sentences: the text of each segment and the token it starts at: a very long sentence is cut.
        num_unknown: source tokens that the vocabulary lacks.
        prefix_ids: forced start of the first segment.
    """

    segments: list[list[int]]
    layout: list[str]
    sentences: list[tuple[str, int]]
    num_unknown: int = 0
    prefix_ids: tuple[int, ...] = ()


class Translator:
    """One model, loaded onto one device.

    Args:
        checkpoint: what to load.
        device: `cpu`, `cuda`, or `auto` for CUDA where there is one.
        precision: `fp32`, `bf16`, `int8` (on a CPU), or `auto`, which measures decode steps and takes the fastest.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, name: str = "", device: str = "auto", precision: str = "auto"
    ) -> None:
        if device not in DEVICES:
            raise InvalidValue("device", device, "one of " + ", ".join(DEVICES))
        if device == "cuda" and not torch.cuda.is_available():
            raise InvalidValue("device", device, "auto or cpu: this machine has no CUDA device")
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if precision not in PRECISIONS:
            raise InvalidValue("precision", precision, "one of " + ", ".join(PRECISIONS))
        if precision != "auto":
            check_precision(precision, self.device)
        self.name = name or f"{checkpoint.src_lang}-{checkpoint.tgt_lang}"
        self.version = checkpoint.version
        self.src_lang, self.tgt_lang = checkpoint.src_lang, checkpoint.tgt_lang
        self.metadata: dict[str, Any] = {"model": checkpoint.model.to_json(), **checkpoint.metrics}
        self.src_tokenizer, self.tgt_tokenizer = checkpoint.src_tokenizer, checkpoint.tgt_tokenizer
        network = checkpoint.build().to(self.device)
        self.num_parameters = network.num_parameters
        if precision == "auto":
            self.network = _fastest(network)
        else:
            self.network = InferenceNetwork(network, precision)
        self.precision = self.network.precision

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        precision: str = "auto",
        num_threads: int | None = None,
    ) -> Translator:
        """The model of a checkpoint folder, named after it.

        Args:
            num_threads: CPU threads that torch uses within an operation, for the whole process; None leaves it.

        Raises:
            CheckpointError: the folder is no sound checkpoint.
            InvalidValue: device or precision.
        """
        if num_threads:
            torch.set_num_threads(num_threads)
        return cls(load_checkpoint(path), name=Path(path).resolve().name, device=device, precision=precision)

    def __repr__(self) -> str:
        return f"Translator({self.name!r}, version={self.version!r}, device={self.device!r}, {self.precision})"

    def warm_up(self) -> None:
        """Runs a few searches, so that no request pays for first calls; and where torch compiles products, those of as
        many rows as single texts bring."""
        if not self.network.is_native:
            for num_rows in sorted({padded_rows(n) for n in range(1, _PROBE_ROWS + 1)}):
                _time_steps(self.network, 1, num_rows)
        for k in (1, 5):
            self.translate(["One.", "Two three four five six."], k=k)

    def decoder(self, *, max_rows: int = _OFFLINE_ROWS) -> StepDecoder:
        """A new decoding loop over this model, for one thread."""
        return StepDecoder(self.network, max_rows=max_rows)

    # -- text to segments and back ---------------------------------------------------------------------------------

    def prepare(self, text: str, *, prefix: str = "") -> Prepared:
        """Splits a text into segments of token ids. A blank text has none.

        Raises:
            InvalidValue: the vocabulary lacks a letter of the prefix.
        """
        segments: list[list[int]] = []
        sentences: list[tuple[str, int]] = []
        layout: list[str] = [""]
        text = _well_formed(text)
        for line in text.splitlines(keepends=True):
            body = line.strip()
            start = line[: len(line) - len(line.lstrip())] if body else line
            layout[-1] += start
            for index, sentence in enumerate(_sentences(self.src_lang, body)):
                ids = self.src_tokenizer.encode(sentence)
                if self._knows_nothing_of(ids):
                    layout[-1] += (" " if index else "") + sentence
                    continue
                for at in range(0, len(ids), MAX_SEGMENT_TOKENS):
                    if index or at:
                        layout[-1] += " "
                    segments.append([*ids[at : at + MAX_SEGMENT_TOKENS], EOS_ID])
                    sentences.append((sentence, at))
                    layout.append("")
            if body:
                layout[-1] += line[len(line.rstrip()) :]
        num_unknown = sum(ids.count(UNK_ID) for ids in segments)
        return Prepared(
            segments=segments,
            layout=layout,
            sentences=sentences,
            num_unknown=num_unknown,
            prefix_ids=self._prefix_ids(prefix),
        )

    def _prefix_ids(self, prefix: str) -> tuple[int, ...]:
        ids = tuple(self.tgt_tokenizer.encode(_well_formed(prefix))) if prefix else ()
        if UNK_ID in ids:  # it has no text: what the caller wants to read could not stand there
            raise InvalidValue("prefix", prefix, "a text in letters that the target vocabulary has")
        return ids

    def banned_ids(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The texts as the token sequences that a search is to avoid: as the tokenizer writes them at the start of a
        word, with the first letter as it is and in the other case.

        Raises:
            InvalidValue: a text is blank, or holds nothing that the vocabulary knows.
        """
        sequences: dict[tuple[int, ...], None] = {}
        for text in texts:
            for spelling in (text, text[:1].swapcase() + text[1:]):
                ids = tuple(self.tgt_tokenizer.encode(_well_formed(spelling)))
                if not ids or (spelling == text and UNK_ID in ids):
                    raise InvalidValue("banned", text, "texts in the target language's letters, not blank")
                if UNK_ID not in ids:
                    sequences[ids] = None
        return tuple(sequences)

    def _knows_nothing_of(self, ids: Sequence[int]) -> bool:
        """Whether no token says anything (an emoji, another script): such a sentence is copied, not guessed at."""
        unknown = [token_id for token_id in ids if token_id == UNK_ID]
        return bool(unknown) and not self.src_tokenizer.decode([i for i in ids if i != UNK_ID]).strip()

    def options_for(self, prepared: Prepared, options: SearchOptions) -> list[SearchOptions]:
        """The options of each segment: the prefix belongs to the first."""
        if not prepared.prefix_ids or not prepared.segments:
            return [options] * len(prepared.segments)
        first = replace(options, prefix_ids=prepared.prefix_ids)
        return [first, *[options] * (len(prepared.segments) - 1)]

    def finish(self, prepared: Prepared, results: Sequence[SegmentResult]) -> Translation:
        """Puts the translated segments together, with the layout that the source had."""
        best = [result.hypotheses[0] for result in results]
        texts = [self._text(hypothesis) for hypothesis in best]
        joined = "".join(before + text for before, text in zip(prepared.layout, texts, strict=False))
        alternatives: tuple[Alternative, ...] = ()
        if len(results) == 1:
            alternatives = tuple(
                Alternative(
                    text=prepared.layout[0] + self._text(h) + prepared.layout[1], score=h.score, log_prob=h.log_prob
                )
                for h in results[0].hypotheses[1:]
            )
        return Translation(
            text=joined + prepared.layout[-1],
            score=sum(h.score for h in best),
            log_prob=sum(h.log_prob for h in best),
            finish=_worst_finish([h.finish for h in best]),
            is_optimal=_all_optimal([result.is_optimal for result in results]),
            gap=_sum_of_gaps(results),
            alternatives=alternatives,
            explanation=self._explain(prepared, results) if results and results[0].token_log_probs else None,
            num_source_tokens=sum(len(ids) - 1 for ids in prepared.segments),
            num_target_tokens=sum(len(h.token_ids) for h in best),
        )

    def _explain(self, prepared: Prepared, results: Sequence[SegmentResult]) -> Explanation:
        source: list[str] = []
        unknown: list[str] = []
        target: list[str] = []
        blocks: list[tuple[tuple[float, ...], ...]] = []
        for ids, (sentence, at), result in zip(prepared.segments, prepared.sentences, results, strict=True):
            pieces = self.src_tokenizer.tokenize(sentence)[at : at + len(ids) - 1]
            source.extend([*pieces, EOS])
            unknown.extend(piece for piece, token_id in zip(pieces, ids, strict=False) if token_id == UNK_ID)
            best = result.hypotheses[0]
            target.extend(self.tgt_tokenizer.tokens(best.token_ids))
            target.extend([EOS] * (len(result.token_log_probs) - len(best.token_ids)))
            blocks.append(result.attention)
        attention: list[tuple[float, ...]] = []
        before = 0
        for ids, block in zip(prepared.segments, blocks, strict=True):
            after = len(source) - before - len(ids)
            attention.extend((*(0.0,) * before, *row, *(0.0,) * after) for row in block)
            before += len(ids)
        tree = results[0].tree if len(results) == 1 else ()
        return Explanation(
            source_tokens=tuple(source),
            target_tokens=tuple(target),
            token_log_probs=tuple(cost for result in results for cost in result.token_log_probs),
            attention=tuple(attention),
            unknown_source_tokens=tuple(unknown),
            tree=tuple(self._tree_token(node) for node in tree),
        )

    def _tree_token(self, node: TreeNode) -> TreeToken:
        token = self.tgt_tokenizer.tokens([node.token_id])[0]
        return TreeToken(parent=node.parent, token=token, log_prob=node.log_prob, state=node.state)

    def text_so_far(
        self, prepared: Prepared, results: Sequence[SegmentResult | None], agreed_ids: Sequence[int]
    ) -> str:
        """What of a translation can no longer change.

        Args:
            prepared: the source.
            results: of its segments; None for those that are not done.
            agreed_ids: tokens that the first of these is sure to start with.
        """
        so_far = ""
        for before, result in zip(prepared.layout, results, strict=False):
            if result is None:
                begun = self.tgt_tokenizer.decode(list(agreed_ids)).rstrip("\N{REPLACEMENT CHARACTER}")
                return so_far + before + begun if begun else so_far
            so_far += before + self._text(result.hypotheses[0])
        return so_far + prepared.layout[-1]

    def _text(self, hypothesis: Hypothesis) -> str:
        return self.tgt_tokenizer.decode(list(hypothesis.token_ids))

    # -- translating -----------------------------------------------------------------------------------------------

    @overload
    def translate(self, texts: str, **options: Any) -> Translation: ...

    @overload
    def translate(self, texts: Sequence[str], **options: Any) -> list[Translation]: ...

    def translate(self, texts: str | Sequence[str], **options: Any) -> Translation | list[Translation]:
        """Translates one text or several.

        Args:
            texts: a text, or a list of them.
            **options: those of `SearchOptions`; `prefix`, the text that each translation has to start with; `banned`,
                texts that may not occur in any; and `explain=True` for explanations.

        Returns:
            A translation for a text, a list of them for a list.

        Raises:
            InvalidValue: naming the option at fault.
        """
        if isinstance(texts, str):
            return next(self.translate_iter([texts], **options))
        return list(self.translate_iter(texts, **options))

    def translate_iter(
        self,
        texts: Iterable[str],
        *,
        prefix: str = "",
        banned: Sequence[str] = (),
        explain: bool = False,
        window: int = 1024,
        **options: Any,
    ) -> Iterator[Translation]:
        """As `translate`, for texts without end: reads `window` texts ahead and yields in order."""
        search = search_options(**options, banned_ids=self.banned_ids(banned), wants_attention=explain)
        pending: list[Prepared] = []
        for text in texts:
            pending.append(self.prepare(text, prefix=prefix))
            if len(pending) >= window:
                yield from self._decode(pending, search)
                pending = []
        yield from self._decode(pending, search)

    def _decode(self, prepared: Sequence[Prepared], options: SearchOptions) -> Iterator[Translation]:
        places = [(text, index) for text, p in enumerate(prepared) for index in range(len(p.segments))]
        segments = [pair for p in prepared for pair in zip(p.segments, self.options_for(p, options), strict=True)]
        results: list[dict[int, SegmentResult]] = [{} for _ in prepared]
        for position, result in decode_all(self.decoder(), segments):
            text, index = places[position]
            results[text][index] = result
        for p, done in zip(prepared, results, strict=True):
            yield self.finish(p, [done[i] for i in range(len(p.segments))])


def _fastest(network: Seq2Seq) -> InferenceNetwork:
    """The network in the precision whose decode step is fastest here.

    Measured, because machines differ: CPUs with AMX or AVX-512 bf16 double their speed in bf16, others halve it. The
    precisions take turns, and the least time of each counts, so that somebody else's work at the same moment does not
    decide.
    """
    device = network.decoder.output.weight.device.type
    names = ["bf16", "fp32"] if device == "cuda" else list(PACKED)
    packed = {name: InferenceNetwork(network, name) for name in names}
    seconds = dict.fromkeys(names, float("inf"))
    for _ in range(5):
        for name in names:
            seconds[name] = min(seconds[name], _time_steps(packed[name]))
    return packed[min(names, key=lambda name: seconds[name])]


def _time_steps(network: InferenceNetwork, num_steps: int = 3, num_rows: int = _PROBE_ROWS) -> float:
    """Seconds of so many steps of a batch of sentences of two tokens."""
    ids = torch.full((num_rows,), EOS_ID, device=network.device)
    memory, rows = network.encode(ids[:, None].expand(-1, 16), [2] * num_rows)
    started = time.perf_counter()
    for _ in range(num_steps):
        scores, rows, _ = network.step(ids, rows, (memory,))
    float(scores.logits[0, 0])  # waits for a GPU
    return time.perf_counter() - started


def search_options(*, search: str | None = None, k: int | None = None, **options: Any) -> SearchOptions:
    """Options as callers write them: k alone means beam, k = 1 greedy; without either it is beam with k = 5.

    Raises:
        InvalidValue: an option that there is none of, one with a wrong value, or one that is given though this search
            would ignore it.
    """
    known = SearchOptions.__dataclass_fields__
    for name, value in options.items():
        if name not in known:
            raise InvalidValue(name, value, "no such option; there are prefix, " + ", ".join(known))
    if search is None:
        search = "greedy" if k == 1 else "beam"
    if search == "sample":  # it has no beam; k is the number of draws
        k = options.get("n_best", 1) if k is None else k
    elif k is None:
        k = 1 if search == "greedy" else 5
    found = SearchOptions(search=search, k=k, **options)
    check_fit(search, {name: value for name, value in options.items() if value is not None})  # defaults too
    return found


def _worst_finish(finishes: Sequence[Finish]) -> Finish:
    if "deadline" in finishes:
        return "deadline"
    return "length" if "length" in finishes else "eos"


def _all_optimal(flags: Sequence[bool | None]) -> bool | None:
    """Of the whole: proven where each is, refuted nowhere, unknown where one is."""
    if not flags or None in flags:
        return None
    return all(flags)


def _sum_of_gaps(results: Sequence[SegmentResult]) -> float | None:
    gaps = [r.bound - r.hypotheses[0].score for r in results if r.bound is not None]
    return max(0.0, sum(gaps)) if results and len(gaps) == len(results) else None


def _well_formed(text: str) -> str:
    """The text with halves of a surrogate pair joined, and lone ones (JSON allows them) replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _sentences(lang: str, line: str) -> list[str]:
    """The sentences of a line; one that normalises to nothing is left out."""
    return [s for s in (sentence.strip() for sentence in split_sentences(lang, line)) if normalize(s)] if line else []
