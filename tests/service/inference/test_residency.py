"""Several models within a memory budget: loaded by the first request, least recently used out first."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model.decoding.search import SearchOptions
from model.errors import CheckpointError, InvalidValue
from service.errors import ModelFailed, ModelLoading
from service.inference.memory import tensor_bytes
from service.inference.registry import Registry
from service.inference.served import TranslateCall, TranslateResult
from service.metrics import Metrics
from service.settings import Settings

TIMEOUT_SECONDS = 30.0
PAIRS = ("en-fr", "fr-en", "en-de")
SIZE = 8000  # of each model; the stub's file says 1000, which is guessed to be as much


class Models:
    """en-fr, fr-en and en-de, of one size."""

    def __init__(self, root: Path, make_translator: Any, write_stub: Any) -> None:
        self.root = root
        self.num_loads = dict.fromkeys(PAIRS, 0)
        self.translators: dict[str, Any] = {}
        self.is_held: set[str] = set()
        self.broken: dict[str, Exception] = {}
        self.may_load = threading.Event()
        self.may_load.set()
        self.registries: list[Registry] = []
        self._make_translator = make_translator
        for number, pair in enumerate(PAIRS):
            write_stub(root / pair, f"{number:012d}", pair=pair, num_bytes=1000)

    def load(self, path: str | Path, /, **_: Any) -> Any:
        name = Path(path).name
        assert self.may_load.wait(TIMEOUT_SECONDS)
        self.num_loads[name] += 1
        if name in self.broken:
            raise self.broken[name]
        translator = self._make_translator(src_lang=name[:2], tgt_lang=name[3:], is_held=name in self.is_held)
        translator.ballast = [torch.zeros(SIZE // 4)]
        self.translators[name] = translator
        return translator

    def registry(self, num_models: float, **settings: Any) -> Registry:
        """One with room for so many of them."""
        options = {"models_poll_seconds": 0, "drain_seconds": 5, **settings}
        given = Settings(checkpoints=self.root, model_memory_bytes=int(num_models * SIZE), **options)
        registry = Registry(given, Metrics(), self.load)
        self.registries.append(registry)
        registry.start()
        if self.may_load.is_set():
            assert registry.wait_until_loaded(TIMEOUT_SECONDS)
        return registry


@pytest.fixture
def models(tmp_path: Path, make_translator: Any, write_stub: Callable[..., Path]) -> Iterator[Models]:
    made = Models(tmp_path / "models", make_translator, write_stub)
    yield made
    made.may_load.set()
    for name in made.is_held:
        for decoder in made.translators[name].decoders if name in made.translators else []:
            decoder.let_go()
    for registry in made.registries:
        registry.close()


def states(registry: Registry) -> dict[str, str]:
    return {model.name: model.state for model in registry.models}


async def ask(registry: Registry, name: str) -> TranslateResult:
    call = TranslateCall(texts=("abc",), options=SearchOptions(k=2))
    return await registry.choose(model=name).translate(call)


def translate(registry: Registry, name: str) -> TranslateResult:
    return asyncio.run(ask(registry, name))


def test_without_a_budget_all_models_are_loaded_at_the_start(models: Models) -> None:
    assert states(models.registry(0)) == dict.fromkeys(PAIRS, "ready")


def test_with_a_budget_as_many_as_fit_are_loaded_at_the_start_the_default_one_first(models: Models) -> None:
    registry = models.registry(1, default_model="fr-en")
    assert states(registry) == {"en-fr": "unloaded", "fr-en": "ready", "en-de": "unloaded"}
    assert registry.readiness().is_ready


def test_the_first_request_loads_its_model_and_the_least_recently_used_goes(models: Models) -> None:
    registry = models.registry(2)
    assert states(registry) == {"en-de": "ready", "en-fr": "ready", "fr-en": "unloaded"}
    translate(registry, "en-de")
    translate(registry, "en-fr")
    assert translate(registry, "fr-en").model == "fr-en"
    assert states(registry) == {"en-de": "unloaded", "en-fr": "ready", "fr-en": "ready"}
    assert models.num_loads == {"en-de": 1, "en-fr": 1, "fr-en": 1}


def test_a_model_is_chosen_by_its_languages_before_it_is_loaded(models: Models) -> None:
    registry = models.registry(1)
    assert registry.choose(source="fr").name == "fr-en"
    assert registry.choose(target="de").name == "en-de"
    with pytest.raises(InvalidValue, match="target"):
        registry.choose(source="fr", target="de")
    assert registry.get("fr-en").facts()["source"] == "fr"


def test_the_memory_that_was_measured_stays_within_the_budget(models: Models) -> None:
    registry = models.registry(2)
    for name in (*PAIRS, *reversed(PAIRS), *PAIRS):
        translate(registry, name)
        loaded = [state for state in states(registry).values() if state == "ready"]
        assert len(loaded) <= 2


def test_requests_that_wait_for_one_model_load_it_once(models: Models) -> None:
    registry = models.registry(1, default_model="en-fr")

    async def scenario() -> list[TranslateResult]:
        return await asyncio.gather(*(ask(registry, "fr-en") for _ in range(20)))

    assert {result.model for result in asyncio.run(scenario())} == {"fr-en"}
    assert models.num_loads["fr-en"] == 1


def test_a_model_in_use_is_not_taken_out_and_the_newcomer_waits_for_it(models: Models) -> None:
    models.is_held.add("en-fr")
    registry = models.registry(1, default_model="en-fr")
    decoder = models.translators["en-fr"].decoders[-1]

    async def scenario() -> None:
        running = asyncio.create_task(ask(registry, "en-fr"))
        await asyncio.to_thread(decoder.begun_step)
        waiting = asyncio.create_task(ask(registry, "fr-en"))
        while registry.get("fr-en").state != "loading":
            await asyncio.sleep(0)
        assert registry.get("en-fr").state == "ready"
        decoder.let_go()
        assert (await running).model == "en-fr"
        assert (await waiting).model == "fr-en"

    asyncio.run(scenario())
    assert states(registry)["en-fr"] == "unloaded"


def test_where_no_room_comes_free_in_time_the_request_is_refused_and_may_try_again(models: Models) -> None:
    models.is_held.add("en-fr")
    registry = models.registry(1, default_model="en-fr", model_wait_seconds=0.05)
    decoder = models.translators["en-fr"].decoders[-1]

    async def scenario() -> None:
        running = asyncio.create_task(ask(registry, "en-fr"))
        await asyncio.to_thread(decoder.begun_step)
        with pytest.raises(ModelLoading):
            await ask(registry, "fr-en")
        assert registry.wait_until_loaded(TIMEOUT_SECONDS)
        assert registry.get("fr-en").state == "unloaded"
        decoder.let_go()
        await running

    asyncio.run(scenario())


def test_a_request_that_gives_up_takes_the_loading_from_nobody_else(models: Models) -> None:
    registry = models.registry(1, default_model="en-fr")
    models.may_load.clear()

    async def scenario() -> TranslateResult:
        impatient = asyncio.create_task(ask(registry, "fr-en"))
        patient = asyncio.create_task(ask(registry, "fr-en"))
        while registry.get("fr-en").state != "loading":
            await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        models.may_load.set()
        return await patient

    assert asyncio.run(scenario()).model == "fr-en"


def test_a_model_larger_than_the_budget_is_served_alone(models: Models) -> None:
    registry = models.registry(0.5)
    assert set(states(registry).values()) == {"unloaded"}
    assert registry.readiness().is_ready
    for name in PAIRS:
        assert translate(registry, name).model == name
        assert list(states(registry).values()).count("ready") == 1


def test_a_model_that_does_not_load_on_demand_says_why_and_is_not_tried_again(models: Models) -> None:
    models.broken["fr-en"] = CheckpointError("weights.safetensors", "is missing")
    registry = models.registry(2)
    for _ in range(2):
        with pytest.raises(ModelFailed, match="is missing"):
            translate(registry, "fr-en")
    assert models.num_loads["fr-en"] == 1
    assert states(registry)["fr-en"] == "failed"
    assert translate(registry, "en-fr").model == "en-fr"


def test_the_tensors_of_an_object_are_counted_once_wherever_they_hang() -> None:
    class Holder:
        def __init__(self) -> None:
            self.one = torch.zeros(10)
            self.same = [self.one, {"deep": (torch.zeros(5, dtype=torch.int8),)}]
            self.me = self

    assert tensor_bytes(Holder()) == 45
