"""One version of a model in memory: text on this side, token ids on the engine's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from model.errors import CheckpointError
from service.errors import Draining
from service.inference.engine import Engine
from service.inference.scheduler import Outcome, Progress, Timings
from service.metrics import Metrics

if TYPE_CHECKING:
    from model.decoding.search import SearchOptions, SegmentResult
    from model.translator import Prepared, Translation, Translator

# Below this many characters the event loop prepares and finishes a request itself: about a millisecond of work, for
# which the way to another thread and back is no gain.
_INLINE_CHARS = 2000

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class TranslateCall:
    """What one caller asks of a model."""

    texts: tuple[str, ...]
    options: SearchOptions
    prefix: str = ""
    banned: tuple[str, ...] = ()
    deadline_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class TranslateResult:
    """What it gets."""

    model: str
    version: str
    translations: list[Translation]
    timings: Timings

    @property
    def num_source_tokens(self) -> int:
        return sum(translation.num_source_tokens for translation in self.translations)

    @property
    def num_target_tokens(self) -> int:
        return sum(translation.num_target_tokens for translation in self.translations)


class ServedModel:
    """A checkpoint folder, its engine and the way through it.

    Args:
        name: the model's.
        path: the folder of one of its versions.
        load: makes its translator; called in the engine's thread.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        load: Callable[[], Translator],
        *,
        max_rows: int,
        max_queued_segments: int,
        metrics: Metrics,
    ) -> None:
        self.name = name
        self.path = path
        self._metrics = metrics
        self.engine = Engine(
            name,
            self._without_paths(load),
            max_rows=max_rows,
            max_queued_segments=max_queued_segments,
            metrics=metrics,
        )

    @property
    def translator(self) -> Translator | None:
        """None until it is loaded."""
        return self.engine.translator

    def retire(self) -> None:
        """Refuses new requests, waits until the last one that it accepted is answered, and frees its memory."""
        self.engine.close(None)
        self.engine.free()

    async def translate(
        self, call: TranslateCall, on_text: Callable[[int, str], None] | None = None
    ) -> TranslateResult:
        """Splits, translates with whatever else is live, and puts together again. Cancelling it frees its rows.

        Args:
            on_text: called with a text's number and what of its translation can no longer change, whenever that grew.

        Raises:
            Unavailable: see `Engine.submit`.
            DeadlinePassed: before there was anything.
            EngineFailure: a decode step failed.
        """
        self.engine.check_open()  # before any work is done for it
        translator = self.translator
        if translator is None:  # retired between these two lines
            raise Draining("this version of the model is no longer served")
        num_chars = sum(map(len, call.texts))
        prepared, segments = await _run(num_chars, lambda: _prepare(translator, call))
        outcome = Outcome(results=[], timings=Timings())
        if segments:
            on_progress = None if on_text is None else _watcher(translator, prepared, on_text)
            future = self.engine.submit(segments, deadline_seconds=call.deadline_seconds, on_progress=on_progress)
            outcome = await asyncio.wrap_future(future)
        translations = await _run(num_chars, lambda: _finish(translator, prepared, outcome.results))
        result = TranslateResult(
            model=self.name, version=translator.version, translations=translations, timings=outcome.timings
        )
        self._count(result, sum(p.num_unknown for p in prepared))
        return result

    def _without_paths(self, load: Callable[[], Translator]) -> Callable[[], Translator]:
        def load_and_tell() -> Translator:
            try:
                return load()
            except CheckpointError as exc:  # its message is shown to callers, who need not know where our folders are
                is_inside = exc.path.is_relative_to(self.path.parent)
                path = exc.path.relative_to(self.path.parent) if is_inside else Path(exc.path.name)
                raise CheckpointError(path, exc.cause) from exc

        return load_and_tell

    def _count(self, result: TranslateResult, num_unknown: int) -> None:
        self._metrics.source_tokens.labels(self.name).inc(result.num_source_tokens)
        self._metrics.target_tokens.labels(self.name).inc(result.num_target_tokens)
        self._metrics.unknown_tokens.labels(self.name).inc(num_unknown)

    def facts(self) -> dict[str, Any]:
        """What is known of the model without asking its network: never a path of this machine."""
        facts: dict[str, Any] = {"name": self.name, "state": self.engine.state}
        if self.engine.cause:
            facts["cause"] = self.engine.cause
        translator = self.translator
        if translator is not None:
            facts |= {
                "version": translator.version,
                "source": translator.src_lang,
                "target": translator.tgt_lang,
                "device": translator.device,
                "precision": translator.precision,
                "num_parameters": translator.num_parameters,
                "metadata": translator.metadata,
            }
        return facts


async def _run(num_chars: int, work: Callable[[], _Result]) -> _Result:
    return work() if num_chars <= _INLINE_CHARS else await asyncio.to_thread(work)


def _prepare(
    translator: Translator, call: TranslateCall
) -> tuple[list[Prepared], list[tuple[list[int], SearchOptions]]]:
    options = replace(call.options, banned_ids=translator.banned_ids(call.banned)) if call.banned else call.options
    prepared = [translator.prepare(text, prefix=call.prefix) for text in call.texts]
    segments = [pair for p in prepared for pair in zip(p.segments, translator.options_for(p, options), strict=True)]
    return prepared, segments


def _watcher(
    translator: Translator, prepared: list[Prepared], on_text: Callable[[int, str], None]
) -> Callable[[Progress], None]:
    """What the engine calls after each step: passes on what grew, in the event loop's thread."""
    loop = asyncio.get_running_loop()
    shown = [""] * len(prepared)

    def show(progress: Progress) -> None:
        start = 0
        for number, p in enumerate(prepared):
            end = start + len(p.segments)
            results = progress.results[start:end]
            so_far = translator.text_so_far(p, results, progress.agreed_ids)
            if so_far != shown[number] and so_far.startswith(shown[number]):
                shown[number] = so_far
                on_text(number, so_far)
            if None in results:
                return
            start = end

    return lambda progress: _in_loop(loop, show, progress)


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[Progress], None], progress: Progress) -> None:
    # A loop that has been closed has nobody left to show anything to.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, progress)


def _finish(translator: Translator, prepared: list[Prepared], results: Sequence[SegmentResult]) -> list[Translation]:
    translations: list[Translation] = []
    start = 0
    for p in prepared:
        end = start + len(p.segments)
        translations.append(translator.finish(p, results[start:end]))
        start = end
    return translations
