"""A loaded model that translates text: the one class to import in a notebook.

    from model import Translator
    Translator.load("checkpoints/en-fr").translate(["Hello."], k=5)

Text is split into lines and sentences, each sentence is translated on its own, all of them in one batch, and they are
put together again with the line breaks they had. Knows no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from sentencex import segment as split_sentences

from model.checkpoint import Checkpoint, load_checkpoint
from model.data.corpus import normalize
from model.data.vocab import EOS_ID, UNK_ID
from model.decoding.search import Finish, Hypothesis, SearchOptions, SegmentResult
from model.decoding.stepper import StepDecoder
from model.errors import InvalidValue

MAX_SEGMENT_TOKENS = 250  # a longer sentence is cut: attention has seen none such, and a step's cost grows with it
PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
_OFFLINE_ROWS = 320
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One of the n best translations that is not the best."""

    text: str
    score: float
    log_prob: float


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A translated text.

    Attributes:
        text: with the line breaks of its source.
        score, log_prob: sums over its sentences.
        finish: `length` where a sentence was cut off, else `eos`.
        is_optimal: whether the result is proven to be the best there is; None where nobody looked.
        alternatives: further translations, best first; only of a text of one sentence.
        num_source_tokens, num_target_tokens: `<eos>` not counted.
    """

    text: str
    score: float
    log_prob: float
    finish: Finish
    is_optimal: bool | None = None
    alternatives: tuple[Alternative, ...] = ()
    num_source_tokens: int = 0
    num_target_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A text on its way to the decoder.

    Attributes:
        segments: source ids of each sentence, ended by `<eos>`.
        layout: what stands before each sentence (spaces, line breaks); one more for the end.
        num_unknown: source tokens that the vocabulary lacks.
        prefix_ids: forced start of the first segment.
    """

    segments: list[list[int]]
    layout: list[str]
    num_unknown: int = 0
    prefix_ids: tuple[int, ...] = ()


class Translator:
    """One model, loaded onto one device.

    Args:
        checkpoint: what to load.
        device: `cpu`, `cuda`, or `auto` for CUDA where there is one.
        precision: `fp32`, `bf16`, or `auto`, which measures a decode step in both and takes the faster.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, name: str = "", device: str = "auto", precision: str = "auto"
    ) -> None:
        if device not in DEVICES:
            raise InvalidValue("device", device, "one of " + ", ".join(DEVICES))
        if precision not in PRECISIONS:
            raise InvalidValue("precision", precision, "one of " + ", ".join(PRECISIONS))
        if device == "cuda" and not torch.cuda.is_available():
            raise InvalidValue("device", device, "auto or cpu: this machine has no CUDA device")
        self.name = name or f"{checkpoint.src_lang}-{checkpoint.tgt_lang}"
        self.version = checkpoint.version
        self.src_lang, self.tgt_lang = checkpoint.src_lang, checkpoint.tgt_lang
        self.metadata: dict[str, Any] = {"model": checkpoint.model.to_json(), **checkpoint.metrics}
        self.src_tokenizer, self.tgt_tokenizer = checkpoint.src_tokenizer, checkpoint.tgt_tokenizer
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._network = checkpoint.build().to(self.device)
        self.num_parameters = self._network.num_parameters
        self.precision = self._fastest_precision() if precision == "auto" else precision
        self._network.to(_DTYPES[self.precision])

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

    def _fastest_precision(self) -> str:
        """Measured, because machines differ: CPUs with AMX double their speed in bf16, others halve it."""
        if self.device == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
        seconds: dict[str, float] = {}
        for name, dtype in _DTYPES.items():
            self._network.to(dtype)
            seconds[name] = min(self._time_decoding() for _ in range(3))
        self._network.float()
        return min(seconds, key=lambda name: seconds[name])

    def _time_decoding(self) -> float:
        decoder = self.decoder()
        decoder.add([([4] * 11 + [EOS_ID], SearchOptions(k=8, max_length=3, min_length=3))] * 4)
        started = time.perf_counter()
        while decoder.num_segments:
            decoder.step()
        return time.perf_counter() - started

    def warm_up(self) -> None:
        """Runs a few searches of each kind, so that no request pays for first calls."""
        for k in (1, 5):
            self.translate(["One.", "Two three four five six."], k=k)

    def decoder(self, *, max_rows: int = _OFFLINE_ROWS) -> StepDecoder:
        """A new decoding loop over this model, for one thread."""
        return StepDecoder(self._network, max_rows=max_rows)

    # -- text to segments and back ---------------------------------------------------------------------------------

    def prepare(self, text: str, *, prefix: str = "") -> Prepared:
        """Splits a text into segments of token ids. A blank text has none."""
        segments: list[list[int]] = []
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
                    layout.append("")
            if body:
                layout[-1] += line[len(line.rstrip()) :]
        prefix_ids = tuple(self.tgt_tokenizer.encode(_well_formed(prefix))) if prefix else ()
        num_unknown = sum(ids.count(UNK_ID) for ids in segments)
        return Prepared(segments=segments, layout=layout, num_unknown=num_unknown, prefix_ids=prefix_ids)

    def _knows_nothing_of(self, ids: Sequence[int]) -> bool:
        """Whether no token says anything (an emoji, another script): such a sentence is copied, not guessed at."""
        unknown = [token_id for token_id in ids if token_id == UNK_ID]
        return bool(unknown) and not self.src_tokenizer.decode([i for i in ids if i != UNK_ID]).strip()

    def options_for(self, prepared: Prepared, options: SearchOptions) -> list[SearchOptions]:
        """The options of each segment: the prefix belongs to the first."""
        if not prepared.prefix_ids or not prepared.segments:
            return [options] * len(prepared.segments)
        first = SearchOptions(**{**options.__dict__, "prefix_ids": prepared.prefix_ids})
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
            finish="length" if any(h.finish == "length" for h in best) else "eos",
            alternatives=alternatives,
            num_source_tokens=sum(len(ids) - 1 for ids in prepared.segments),
            num_target_tokens=sum(len(h.token_ids) for h in best),
        )

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
            **options: `k`, `search`, `n_best`, `length_penalty`, `max_length`, `min_length` of `SearchOptions`, and
                `prefix`, the text that each translation has to start with.

        Returns:
            A translation for a text, a list of them for a list.

        Raises:
            InvalidValue: naming the option at fault.
        """
        if isinstance(texts, str):
            return next(self.translate_iter([texts], **options))
        return list(self.translate_iter(texts, **options))

    def translate_iter(
        self, texts: Iterable[str], *, prefix: str = "", window: int = 512, **options: Any
    ) -> Iterator[Translation]:
        """As `translate`, for texts without end: reads `window` texts ahead and yields in order."""
        search = search_options(**options)
        pending: list[Prepared] = []
        for text in texts:
            pending.append(self.prepare(text, prefix=prefix))
            if len(pending) >= window:
                yield from self._decode(pending, search)
                pending = []
        yield from self._decode(pending, search)

    def _decode(self, prepared: Sequence[Prepared], options: SearchOptions) -> Iterator[Translation]:
        queue = [
            (text, index, segment, wanted)
            for text, p in enumerate(prepared)
            for index, (segment, wanted) in enumerate(zip(p.segments, self.options_for(p, options), strict=True))
        ]
        queue.sort(key=lambda entry: len(entry[2]), reverse=True)  # neighbours of like length share an encoder batch
        decoder = self.decoder()
        waiting: dict[int, tuple[int, int]] = {}
        results: list[dict[int, SegmentResult]] = [{} for _ in prepared]
        position = 0
        while position < len(queue) or decoder.num_segments:
            room = max(1, (decoder.max_rows - decoder.num_rows) // options.k) if decoder.can_add(options) else 0
            # Half the table at a time: encoding a few rows at once costs nearly as much as encoding one.
            if position < len(queue) and room >= max(1, decoder.max_rows // options.k // 4):
                batch = queue[position : position + room]
                position += len(batch)
                handles = decoder.add([(segment, wanted) for _, _, segment, wanted in batch])
                waiting.update(zip(handles, ((text, index) for text, index, _, _ in batch), strict=True))
            for handle, result in decoder.step():
                text, index = waiting.pop(handle)
                results[text][index] = result
        for p, done in zip(prepared, results, strict=True):
            yield self.finish(p, [done[i] for i in range(len(p.segments))])


def search_options(*, search: str | None = None, k: int | None = None, **options: Any) -> SearchOptions:
    """Options as callers write them: k alone means beam, k = 1 greedy; without either it is beam with k = 5.

    Raises:
        InvalidValue: an option that there is none of, or one with a wrong value.
    """
    known = SearchOptions.__dataclass_fields__
    for name, value in options.items():
        if name not in known:
            raise InvalidValue(name, value, "no such option; there are prefix, " + ", ".join(known))
    if search is None:
        search = "greedy" if k == 1 else "beam"
    if k is None:
        k = 1 if search == "greedy" else 5
    return SearchOptions(search=search, k=k, **options)


def _well_formed(text: str) -> str:
    """The text with halves of a surrogate pair joined, and lone ones (JSON allows them) replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _sentences(lang: str, line: str) -> list[str]:
    """The sentences of a line; one that normalises to nothing is left out."""
    return [s for s in (sentence.strip() for sentence in split_sentences(lang, line)) if normalize(s)] if line else []
