"""A model by its name: new requests go to its live version, whatever is loaded beside that or drains behind it.

A request counts as a user of the model from its first line to its last, so that a model in use is never taken out of
memory. A switch is one assignment. A request that had picked the old version before it, and comes to the old engine
after it, is refused there before anything was started, and goes to the new one instead: it never learns of the switch.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from service.errors import Draining, ModelFailed, ModelLoading, NoModel
from service.inference.served import ServedModel, TranslateCall, TranslateResult
from service.inference.versions import CONFIG_FILE, Target

ModelState = Literal["loading", "ready", "failed", "draining", "stopped", "unloaded", "not_live"]


class LiveModel:
    """One name, and what is in memory for it.

    Attributes:
        served: the version that new requests get; None while none is in memory.
        target: the version on disk that is to be served, or was refused; None where none is live.
        cause: why the target could not be loaded.
        pointer_cause: why it is not known which version is live.
        languages: source and target code; None while they are not known.
        last_used: when a request began or ended, seconds, monotonic.
        switching: held by whoever loads or replaces what is served.
        is_closed: the server is shutting down.

    Args:
        summon: starts loading it, and tells when that is done.
        on_idle: called when the last request on it has ended.
        wait_seconds: time that a request waits for its loading; 0 to refuse it at once.
    """

    def __init__(
        self,
        name: str,
        *,
        summon: Callable[[LiveModel], Future[None]],
        on_idle: Callable[[], None],
        wait_seconds: float,
    ) -> None:
        self.name = name
        self.served: ServedModel | None = None
        self.target: Target | None = None
        self.cause = ""
        self.pointer_cause = ""
        self.languages: tuple[str, str] | None = None
        self.last_used = 0.0
        self.switching = threading.Lock()
        self.arrival: Future[None] | None = None
        self.is_closed = False
        self._summon = summon
        self._on_idle = on_idle
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._num_calls = 0

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> ModelState:
        served, arrival = self.served, self.arrival
        if self.is_closed:
            return "draining"
        if served is not None:
            return served.engine.state
        if arrival is not None and not arrival.done():
            return "loading"
        if self.cause or self.pointer_cause:
            return "failed"
        return "not_live" if self.target is None else "unloaded"

    @property
    def version(self) -> str | None:
        """Of what is served, else of what would be loaded."""
        served = self.served
        translator = None if served is None else served.translator
        if translator is not None:
            return translator.version
        return None if self.target is None else self.target.version or None

    @property
    def trouble(self) -> str:
        """What stands in the way of the live version; empty where nothing does."""
        served = self.served
        return self.pointer_cause or self.cause or ("" if served is None else served.engine.cause)

    def facts(self) -> dict[str, Any]:
        """What is known of the model without asking its network: never a path of this machine."""
        served, target = self.served, self.target
        facts: dict[str, Any] = {"name": self.name}
        if served is not None:
            facts |= served.facts()
        elif target is not None:
            facts |= _facts_on_disk(target)
        facts |= {"state": self.state}
        if self.trouble:
            facts["cause"] = self.trouble
        return facts

    # -- requests ------------------------------------------------------------------------------------------------------

    async def translate(
        self, call: TranslateCall, on_text: Callable[[int, str], None] | None = None
    ) -> TranslateResult:
        """As `ServedModel.translate`, on the live version; a model that is not in memory is loaded first.

        Raises:
            Unavailable: see `open` and `Engine.submit`.
            DeadlinePassed: before there was anything.
            EngineFailure: a decode step failed.
        """
        with self._in_use():
            while True:
                served = await self._in_memory()
                try:
                    return await served.translate(call, on_text)
                except Draining:
                    if served is self.served or self.is_closed:
                        raise

    async def open(self) -> None:
        """Raises what `translate` would raise at once: the model is not live, does not load or not in time, is full."""
        with self._in_use():
            while True:
                served = await self._in_memory()
                try:
                    return served.engine.check_open()
                except Draining:
                    if served is self.served or self.is_closed:
                        raise

    async def _in_memory(self) -> ServedModel:
        while (served := self.served) is None:
            await self._be_loaded()
        return served

    async def _be_loaded(self) -> None:
        if self.is_closed:
            raise Draining("the server is shutting down")
        if self.trouble:
            raise ModelFailed(f"the model {self.name} could not be loaded: {self.trouble}", retry_after_seconds=30)
        if self.target is None:
            raise NoModel(
                f"no version of {self.name} is live; POST /models/{self.name}/promote", retry_after_seconds=30
            )
        loading = ModelLoading(f"the model {self.name} is being loaded; GET /health/ready tells when it is ready")
        if not self._wait_seconds:
            raise loading
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._summon(self)), self._wait_seconds)
        except TimeoutError as exc:
            raise loading from exc

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._lock:
            self._num_calls += 1
        self.last_used = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._num_calls -= 1
            self.last_used = time.monotonic()
            if not self._num_calls:
                self._on_idle()

    # -- changes -------------------------------------------------------------------------------------------------------

    def aim(self, target: Target | None) -> None:
        """Says what is to be served, before anything of it is loaded."""
        self.target, self.cause = target, ""
        if self.served is None:
            self.languages = None if target is None else _languages_on_disk(target.folder)

    def install(self, served: ServedModel, target: Target) -> ServedModel | None:
        """New requests go to `served`, which is loaded; what they went to before, for the caller to retire."""
        translator = served.translator
        assert translator is not None, "only what was loaded is installed"
        with self._lock:
            before, self.served = self.served, served
            self.target, self.cause = target, ""
            self.languages = (translator.src_lang, translator.tgt_lang)
        return before

    def take_out(self) -> ServedModel | None:
        """Takes the model out of memory, for the caller to retire; None where somebody is using it."""
        with self._lock:
            if self._num_calls:
                return None
            before, self.served = self.served, None
            return before


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _languages_on_disk(folder: Path) -> tuple[str, str] | None:
    config = _read(folder / CONFIG_FILE)
    return (str(config["src_lang"]), str(config["tgt_lang"])) if {"src_lang", "tgt_lang"} <= set(config) else None


def _facts_on_disk(target: Target) -> dict[str, Any]:
    """What a checkpoint says of itself, unchecked."""
    config = _read(target.folder / CONFIG_FILE)
    if not config:
        return {}
    metrics = _read(target.folder / "metrics.json")
    return {
        "version": target.version,
        "source": config.get("src_lang"),
        "target": config.get("tgt_lang"),
        "num_parameters": metrics.get("num_parameters"),
        "metadata": {"model": config.get("model"), **metrics},
    }
