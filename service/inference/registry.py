"""The models that this process serves: finds their folders, starts an engine for each, picks one for a request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from model.errors import InvalidValue
from service.errors import ModelLoading, NoModel, UnknownModel
from service.inference.served import ServedModel
from service.inference.versions import checkpoint_folders
from service.logs import EventLog
from service.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from model.translator import Translator

log = EventLog("registry")


class Loader(Protocol):
    """`Translator.load`, or a test's stand-in for it."""

    def __call__(self, path: str | Path, /, *, device: str, precision: str, num_threads: int | None) -> Translator: ...


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Whether requests can be answered, and what stands in the way."""

    is_ready: bool
    reason: str
    models: dict[str, str]


def load_translator(path: str | Path, /, *, device: str, precision: str, num_threads: int | None) -> Translator:
    """`Translator.load`; torch is imported by the first model that is loaded, not by whoever imports this module."""
    from model.translator import Translator

    return Translator.load(path, device=device, precision=precision, num_threads=num_threads)


class Registry:
    """All models of one app.

    Args:
        load: makes a translator from a folder; a test gives its own.
    """

    def __init__(self, settings: Settings, metrics: Metrics, load: Loader = load_translator) -> None:
        self._settings = settings
        self._load = load
        # One at a time: precision is chosen by measuring, which company would disturb.
        self._loading = threading.Lock()
        self._is_draining = False
        self._models = {
            path.resolve().name: ServedModel(
                path.resolve().name,
                path,
                self._loader_of(path),
                max_rows=settings.max_rows,
                max_queued_segments=settings.max_queued_segments,
                metrics=metrics,
            )
            for path in checkpoint_folders(settings.checkpoints_path)
        }
        metrics.watch(queue_depth=lambda: self.num_waiting, live_rows=lambda: self.num_live_rows)

    def _loader_of(self, path: Path) -> Callable[[], Translator]:
        def load() -> Translator:
            with self._loading:
                settings = self._settings
                translator = self._load(
                    path, device=settings.device, precision=settings.precision, num_threads=settings.num_threads
                )
                translator.warm_up()
                return translator

        return load

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts every engine; each loads its model in its own thread."""
        if not self._models:
            log.warning("no_checkpoints", folder=self._settings.checkpoints_path)
        for model in self._models.values():
            model.engine.start()

    def begin_drain(self) -> None:
        """Refuses new requests; live ones go on."""
        if not self._is_draining:
            log.info("drain_started", num_waiting=self.num_waiting, num_live_rows=self.num_live_rows)
        self._is_draining = True
        for model in self._models.values():
            model.engine.begin_drain()

    def close(self) -> None:
        """Ends every engine; they drain beside each other, so that one time limit holds for all."""
        self.begin_drain()
        closing = [
            threading.Thread(target=model.engine.close, args=(self._settings.drain_seconds,), daemon=True)
            for model in self._models.values()
        ]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()

    # -- what is there -----------------------------------------------------------------------------------------------

    @property
    def models(self) -> list[ServedModel]:
        return list(self._models.values())

    @property
    def num_waiting(self) -> int:
        return sum(model.engine.num_waiting for model in self._models.values())

    @property
    def num_live_rows(self) -> int:
        return sum(model.engine.num_live_rows for model in self._models.values())

    def readiness(self) -> Readiness:
        """Ready is: no model is still loading, at least one is served, and no shutdown has begun."""
        states = {model.name: model.engine.state for model in self.models}
        models = {m.name: f"failed: {m.engine.cause}" if m.engine.cause else str(m.engine.state) for m in self.models}
        if self._is_draining:
            reason = "the server is shutting down"
        elif not states:
            reason = "there is no checkpoint in the folder that RECURRA_CHECKPOINTS names"
        elif loading := [name for name, state in states.items() if state == "loading"]:
            reason = f"loading {', '.join(loading)}"
        elif "ready" not in states.values():
            reason = "; ".join(f"{m.name}: {m.facts().get('cause', m.engine.state)}" for m in self.models)
        else:
            return Readiness(is_ready=True, reason="", models=models)
        return Readiness(is_ready=False, reason=reason, models=models)

    def get(self, name: str) -> ServedModel:
        """Raises UnknownModel."""
        if name not in self._models:
            raise UnknownModel(name, list(self._models))
        return self._models[name]

    def choose(self, *, model: str | None = None, source: str | None = None, target: str | None = None) -> ServedModel:
        """The model named, else the one that fits the languages, else the default one.

        Raises:
            UnknownModel: there is none of that name.
            InvalidValue: a language that the model does not have, or several models fit and none is the default.
            Unavailable: no model is ready.
        """
        if model is not None:
            chosen = self.get(model)
            _check_languages(chosen, source, target)
            return chosen
        ready = [model for model in self.models if model.translator is not None and model.engine.state != "failed"]
        fitting = [model for model in ready if _fits(model, source, target)]
        default = [model for model in fitting if model.name == self._settings.default_model]
        if len(default or fitting) == 1:
            return (default or fitting)[0]
        if any(model.is_loading for model in self.models):
            raise ModelLoading("models are being loaded; GET /health/ready tells when they are ready")
        if not ready:
            raise NoModel(f"no model is ready: {self.readiness().reason}", retry_after_seconds=30)
        if fitting:
            raise InvalidValue("model", None, "one of " + ", ".join(model.name for model in fitting))
        raise _no_such_pair(ready, source, target)


def _fits(model: ServedModel, source: str | None, target: str | None) -> bool:
    translator = model.translator
    assert translator is not None
    return source in (None, translator.src_lang) and target in (None, translator.tgt_lang)


def _check_languages(model: ServedModel, source: str | None, target: str | None) -> None:
    translator = model.translator
    if translator is not None and source not in (None, translator.src_lang):
        raise InvalidValue("source", source, f"{translator.src_lang}, the source language of {model.name}")
    if translator is not None and target not in (None, translator.tgt_lang):
        raise InvalidValue("target", target, f"{translator.tgt_lang}, the target language of {model.name}")


def _no_such_pair(ready: list[ServedModel], source: str | None, target: str | None) -> InvalidValue:
    pairs = sorted({(m.translator.src_lang, m.translator.tgt_lang) for m in ready if m.translator is not None})
    allowed = "one of the pairs " + ", ".join(f"{src}→{tgt}" for src, tgt in pairs)
    is_source_known = source is None or any(src == source for src, _ in pairs)
    return InvalidValue("target", target, allowed) if is_source_known else InvalidValue("source", source, allowed)
