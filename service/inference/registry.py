"""The models that this process serves: finds them on disk, loads and switches their versions, picks one for a request.

Which version of a model is live stands on disk (`service.inference.versions`). A promotion here loads and warms up the
new version beside the old one, and only a version that loaded becomes the live one, on disk and then in memory. Other
processes on the same folder look at it every RECURRA_MODELS_POLL_SECONDS and switch the same way; one on which the new
version does not load (less memory, another device) stays with the old one and says so in GET /models.

Nothing here waits inside the event loop: loading, switching and looking at the disk are done in threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass

from model.errors import CheckpointError, InvalidValue, RecurraError
from service.errors import (
    Draining,
    ModelFailed,
    ModelLoading,
    NoModel,
    UnknownModel,
    VersionRefused,
)
from service.inference.live import LiveModel
from service.inference.loading import Loader as Loader
from service.inference.loading import ModelLoader
from service.inference.loading import load_translator as load_translator
from service.inference.memory import give_back
from service.inference.pointer import Switch
from service.inference.residency import Residency
from service.inference.served import ServedModel
from service.inference.versions import Target, VersionInfo, VersionStore
from service.logs import EventLog
from service.metrics import Metrics
from service.settings import Settings

log = EventLog("registry")


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Whether requests can be answered, and what stands in the way."""

    is_ready: bool
    reason: str
    models: dict[str, str]


class Registry:
    """All models of one app.

    Args:
        load: makes a translator from a folder; a test gives its own.

    Attributes:
        store: the models and versions on disk.
    """

    def __init__(self, settings: Settings, metrics: Metrics, load: Loader = load_translator) -> None:
        self._settings = settings
        self._loader = ModelLoader(settings, metrics, load)
        self._is_on_demand = settings.model_memory_bytes > 0
        self._residency = Residency(
            settings.model_memory_bytes, models=lambda: self.models if self._is_on_demand else [], evict=self._evict
        )
        self._is_draining = threading.Event()
        self._has_started = threading.Event()
        self._has_loaded = False  # what is loaded at the start has been loaded, or refused
        self._changing = threading.Lock()  # of the list of models
        self._watcher: threading.Thread | None = None
        self.store = VersionStore(settings.checkpoints_path)
        self._models = {name: self._new_model(name) for name in self.store.names()}
        for model in self._models.values():
            self._look_at(model)
        metrics.watch(queue_depth=lambda: self.num_waiting, live_rows=lambda: self.num_live_rows)
        metrics.watch_models(lambda: [(m.name, m.version or "") for m in self.models if m.served is not None])

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Loads the models, each in a thread of its own: all of them, or as many as the memory setting allows."""
        if not self._models:
            log.warning("no_checkpoints", folder=self._settings.checkpoints_path)
        room = self._settings.model_memory_bytes
        for model in sorted(self.models, key=lambda model: model.name != self._settings.default_model):
            if model.target is None:
                continue
            room -= self._loader.expected_bytes(model.target)
            if not self._is_on_demand or room >= 0:
                self._summon(model)
        self._has_started.set()
        if self._settings.models_poll_seconds:
            self._watcher = threading.Thread(target=self._watch, name="models-watch", daemon=True)
            self._watcher.start()

    def begin_drain(self) -> None:
        """Refuses new requests; live ones go on."""
        if not self._is_draining.is_set():
            log.info("drain_started", num_waiting=self.num_waiting, num_live_rows=self.num_live_rows)
        self._is_draining.set()
        for model in self.models:
            model.is_closed = True
        for served in self._residency.all_served:
            served.engine.begin_drain()

    def close(self) -> None:
        """Ends every engine; they drain beside each other, so that one time limit holds for all."""
        self.begin_drain()
        closing = [
            threading.Thread(target=served.engine.close, args=(self._settings.drain_seconds,), daemon=True)
            for served in self._residency.all_served
        ]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()

    def wait_until_loaded(self, timeout_seconds: float | None = None) -> bool:
        """Whether all loading that has begun has ended within the time, well or not."""
        if not self._has_started.wait(timeout_seconds):
            return False
        arrivals = [model.arrival for model in self.models if model.arrival is not None]
        return not wait(arrivals, timeout_seconds).not_done

    # -- what is there -----------------------------------------------------------------------------------------------

    @property
    def models(self) -> list[LiveModel]:
        with self._changing:
            return [self._models[name] for name in sorted(self._models)]

    @property
    def _is_serving(self) -> bool:
        return any(model.served is not None for model in self.models)

    @property
    def num_waiting(self) -> int:
        return sum(served.engine.num_waiting for served in self._residency.all_served)

    @property
    def num_live_rows(self) -> int:
        return sum(served.engine.num_live_rows for served in self._residency.all_served)

    def readiness(self) -> Readiness:
        """Ready is: what is loaded at the start has been, one is served or can be loaded, no shutdown has begun."""
        states = {model.name: model.state for model in self.models}
        models = {m.name: f"failed: {m.trouble}" if m.state == "failed" else str(m.state) for m in self.models}
        loading = [name for name, state in states.items() if state == "loading"]
        self._has_loaded = self._has_loaded or (self._has_started.is_set() and not loading)
        if self._is_draining.is_set():
            reason = "the server is shutting down"
        elif not states:
            reason = "there is no checkpoint in the folder that RECURRA_CHECKPOINTS names"
        elif not self._has_loaded:
            reason = f"loading {', '.join(loading)}"
        elif not {"ready", "unloaded"} & set(states.values()):
            reason = "; ".join(f"{m.name}: {m.trouble or m.state}" for m in self.models)
        else:
            return Readiness(is_ready=True, reason="", models=models)
        return Readiness(is_ready=False, reason=reason, models=models)

    def get(self, name: str) -> LiveModel:
        """Raises UnknownModel."""
        with self._changing:
            if name not in self._models:
                raise UnknownModel(name, sorted(self._models))
            return self._models[name]

    def on_disk(self, name: str) -> tuple[list[VersionInfo], list[Switch]]:
        """A model's versions, and when which of them was live; nothing where the disk does not tell."""
        try:
            return self.store.versions(name), self.store.history(name)
        except RecurraError:
            return [], []

    # -- switching ---------------------------------------------------------------------------------------------------

    async def promote(self, name: str, version: str, *, reason: str) -> None:
        """Makes a version live: here at once, on other processes at their next look.

        It is loaded and warmed up beside the old one first. New requests then go to it; running ones end on the old,
        which is freed after the last of them. Works for a model of which nothing was live before.

        Raises:
            UnknownModel, UnknownVersion: there is none.
            VersionRefused: it does not load; nothing was changed.
            CannotStore: the pointer to the live version cannot be written; nothing was changed.
        """
        await asyncio.to_thread(self.promote_now, name, version, reason=reason)

    async def rollback(self, name: str) -> str:
        """As `promote`, of the version that was live before, which is returned. Raises NoPreviousVersion."""
        return await asyncio.to_thread(self.rollback_now, name)

    def promote_now(self, name: str, version: str, *, reason: str) -> None:
        """As `promote`, for callers outside the event loop."""
        target = self.store.target_of(name, version)
        self._switch(self._known(name), target, lambda: self.store.set_live(name, version, reason=reason))
        log.info("model_promoted", model=name, version=version, reason=reason)

    def rollback_now(self, name: str) -> str:
        """As `rollback`, for callers outside the event loop."""
        version = self.store.previous(name)
        target = self.store.target_of(name, version)
        self._switch(self._known(name), target, lambda: self.store.rollback(name, expected=version))
        log.info("model_rolled_back", model=name, version=version)
        return version

    def follow(self) -> None:
        """Looks at the disk once: models that are new or gone, and live versions that others changed."""
        names = self.store.names()
        for name in names:
            if self._is_known(name) or self._is_complete(name):
                model = self._known(name)
                if self._look_at(model) and not self._is_on_demand and not self._is_draining.is_set():
                    self._summon(model)
        with self._changing:
            for name in set(self._models) - set(names):
                if self._models[name].served is None and self._models[name].state != "loading":
                    del self._models[name]

    def _look_at(self, model: LiveModel) -> bool:
        """Takes note of what is live on disk, and switches to it; whether there is something new to be loaded."""
        try:
            target = self.store.target(model.name)
        except CheckpointError as exc:  # a damaged pointer: what is served goes on
            model.pointer_cause = f"{exc.path.name}: {exc.cause}"
            return False
        model.pointer_cause = ""
        if target == model.target:
            return False
        if model.served is None:
            model.aim(target)
            return target is not None
        self._follow(model)
        return False

    def _follow(self, model: LiveModel) -> None:
        with model.switching:
            # Read anew: what was read before the lock may be what a promotion here has just replaced.
            target = self.store.target(model.name)
            if target is None or target == model.target:
                return
            try:
                self._replace(model, target, lambda: None)
                log.info("model_followed", model=model.name, version=target.version)
            except RecurraError as exc:  # the old one goes on; the next look does not try this one again
                model.target, model.cause = target, str(exc)

    def _switch(self, model: LiveModel, target: Target, make_live: Callable[[], object]) -> None:
        with model.switching:
            self._replace(model, target, make_live)

    def _replace(self, model: LiveModel, target: Target, make_live: Callable[[], object]) -> None:
        """Loads a version, lets `make_live` write that down, puts it into service; or raises and changes nothing."""
        if model.served is not None and model.version == target.version and model.state == "ready":
            make_live()
            model.target, model.cause = target, ""
            return
        candidate = self._loader.make(model.name, target, is_quiet=self._is_serving)
        with ExitStack() as undo:
            undo.callback(self._retire, candidate)
            self._residency.enter(candidate, self._loader.expected_bytes(target))
            try:
                self._load(candidate)
            except ModelFailed as exc:
                raise VersionRefused(model.name, target.version, candidate.engine.cause) from exc
            make_live()
            undo.pop_all()
        self._install(model, candidate, target)

    def _load(self, served: ServedModel) -> None:
        """Raises ModelFailed, Draining."""
        served.engine.start()
        served.engine.wait_until_loaded()
        if self._is_draining.is_set():
            raise Draining("the server is shutting down")
        served.engine.check_open()
        self._residency.settle(served, self._loader.measured_bytes(served))

    def _install(self, model: LiveModel, served: ServedModel, target: Target) -> None:
        before = model.install(served, target)
        if self._is_draining.is_set():
            served.engine.begin_drain()
        if before is not None:
            self._retire(before)

    def _retire(self, served: ServedModel) -> None:
        """Out of service now; freed, in a thread of its own, once its last request is answered."""
        served.engine.begin_drain()

        def retire() -> None:
            served.retire()
            give_back()
            self._residency.leave(served)

        threading.Thread(target=retire, name=f"retire-{served.name}", daemon=True).start()

    # -- loading on demand ---------------------------------------------------------------------------------------------

    def _summon(self, model: LiveModel) -> Future[None]:
        """Starts a thread that loads the model, unless one is at it."""
        with self._changing:
            if model.arrival is not None and (not model.arrival.done() or model.served is not None):
                return model.arrival
            arrival: Future[None] = Future()
            arrival.set_running_or_notify_cancel()  # a caller that gives up takes nobody else's model away
            model.arrival = arrival
        threading.Thread(target=self._bring_in, args=(model, arrival), name=f"load-{model.name}", daemon=True).start()
        return arrival

    def _bring_in(self, model: LiveModel, arrival: Future[None]) -> None:
        try:
            with model.switching:
                if model.served is None:
                    self._load_within_budget(model)
            arrival.set_result(None)  # not the model: a future that is kept would keep that from being freed
        except Exception as exc:  # whoever waits is told; the others go on
            if not isinstance(exc, RecurraError):
                log.exception("model_failed", exc, model=model.name)
            arrival.set_exception(exc)

    def _load_within_budget(self, model: LiveModel) -> None:
        model.aim(self.store.target(model.name))  # not what the last look at the disk saw
        target = model.target
        if target is None:
            raise NoModel(f"no version of {model.name} is live", retry_after_seconds=30)
        served = self._loader.make(model.name, target, is_quiet=self._is_serving)
        num_bytes = self._loader.expected_bytes(target)
        if not self._residency.admit(served, num_bytes, timeout_seconds=self._settings.model_wait_seconds):
            raise ModelLoading(
                f"there is no room for {model.name} while the other models are in use (RECURRA_MODEL_MEMORY_BYTES)"
            )
        with ExitStack() as undo:
            undo.callback(self._retire, served)
            try:
                self._load(served)
            except ModelFailed:
                model.cause = served.engine.cause
                raise
            undo.pop_all()
        self._install(model, served, target)

    def _evict(self, model: LiveModel) -> bool:
        served = model.take_out()
        if served is not None:
            self._retire(served)
        return served is not None

    # -- what the disk says --------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._is_draining.wait(self._settings.models_poll_seconds):
            try:
                self.follow()
            except Exception as exc:  # a disk that is away for a moment; the next look comes
                log.exception("models_watch_failed", exc)

    def _is_complete(self, name: str) -> bool:
        """Whether a folder that has just appeared is more than a checkpoint that is being written."""
        try:
            return bool(self.store.versions(name))
        except RecurraError:
            return False

    def _is_known(self, name: str) -> bool:
        with self._changing:
            return name in self._models

    def _known(self, name: str) -> LiveModel:
        with self._changing:
            if name not in self._models:
                self._models[name] = self._new_model(name)
            return self._models[name]

    def _new_model(self, name: str) -> LiveModel:
        return LiveModel(
            name,
            summon=self._summon,
            on_idle=self._residency.note_idle,
            wait_seconds=self._settings.model_wait_seconds if self._is_on_demand else 0,
        )

    # -- choosing ------------------------------------------------------------------------------------------------------

    def choose(self, *, model: str | None = None, source: str | None = None, target: str | None = None) -> LiveModel:
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
        ready = [model for model in self.models if self._is_available(model)]
        fitting = [model for model in ready if _fits(model, source, target)]
        default = [model for model in fitting if model.name == self._settings.default_model]
        if len(default or fitting) == 1:
            return (default or fitting)[0]
        if any(model.state == "loading" for model in self.models):
            raise ModelLoading("models are being loaded; GET /health/ready tells when they are ready")
        if not ready:
            raise NoModel(f"no model is ready: {self.readiness().reason}", retry_after_seconds=30)
        if fitting:
            raise InvalidValue("model", None, "one of " + ", ".join(model.name for model in fitting))
        raise _no_such_pair(ready, source, target)

    def _is_available(self, model: LiveModel) -> bool:
        if model.served is not None:
            return model.state != "failed"
        return self._is_on_demand and model.state in ("loading", "unloaded")


def _fits(model: LiveModel, source: str | None, target: str | None) -> bool:
    src_lang, tgt_lang = model.languages or (None, None)
    return source in (None, src_lang) and target in (None, tgt_lang)


def _check_languages(model: LiveModel, source: str | None, target: str | None) -> None:
    if model.languages is not None and source not in (None, model.languages[0]):
        raise InvalidValue("source", source, f"{model.languages[0]}, the source language of {model.name}")
    if model.languages is not None and target not in (None, model.languages[1]):
        raise InvalidValue("target", target, f"{model.languages[1]}, the target language of {model.name}")


def _no_such_pair(ready: list[LiveModel], source: str | None, target: str | None) -> InvalidValue:
    pairs = sorted({model.languages for model in ready if model.languages is not None})
    allowed = "one of the pairs " + ", ".join(f"{src}→{tgt}" for src, tgt in pairs)
    is_source_known = source is None or any(src == source for src, _ in pairs)
    return InvalidValue("target", target, allowed) if is_source_known else InvalidValue("source", source, allowed)
