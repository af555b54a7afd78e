"""A version goes live while requests run: none fails, the old one is freed, other processes follow."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.decoding.search import SearchOptions
from model.errors import CheckpointError
from service.errors import CannotStore, Draining, NoModel, NoPreviousVersion, UnknownVersion, VersionRefused
from service.inference.registry import Registry
from service.inference.served import TranslateCall, TranslateResult
from service.metrics import Metrics
from service.settings import Settings

TIMEOUT_SECONDS = 30.0
OLD, NEW, NEWER = "0123456789ab", "abcdefabcdef", "fedcbafedcba"


class Folder:
    """A model en-fr with the version OLD live, NEW and NEWER beside it; what each is loaded as."""

    def __init__(self, root: Path, make_translator: Any, write_stub: Any) -> None:
        self.root = root
        self.write_stub = write_stub
        self.loaded: list[weakref.ref[Any]] = []
        self.precisions: list[str] = []
        self.make: dict[str, Callable[[], Any]] = {}
        self.registries: list[Registry] = []
        self._make_translator = make_translator
        self.add("en-fr", OLD)
        for version in (NEW, NEWER):
            self.publish("en-fr", version)

    def add(self, name: str, version: str) -> None:
        self._register(self.write_stub(self.root / name, version, pair=name), version, name)

    def publish(self, name: str, version: str) -> None:
        self._register(self.write_stub(self.root / name / "versions" / version, version, pair=name), version, name)

    def _register(self, folder: Path, version: str, name: str) -> None:
        def make() -> Any:
            translator = self._make_translator(src_lang=name[:2], tgt_lang=name[3:])
            translator.version = version
            return translator

        self.make[folder.name] = make

    def load(self, path: str | Path, /, *, precision: str, **_: Any) -> Any:
        translator = self.make[Path(path).name]()
        self.loaded.append(weakref.ref(translator))
        self.precisions.append(precision)
        return translator

    def registry(self, load: Any = None, **settings: Any) -> Registry:
        """One that runs, and looks at the disk only when it is told to."""
        options = {"models_poll_seconds": 0, "drain_seconds": 5, **settings}
        registry = Registry(Settings(checkpoints=self.root, **options), Metrics(), load or self.load)
        self.registries.append(registry)
        registry.start()
        assert registry.wait_until_loaded(TIMEOUT_SECONDS)
        return registry


@pytest.fixture
def folder(tmp_path: Path, make_translator: Any, write_stub: Any) -> Iterator[Folder]:
    made = Folder(tmp_path / "models", make_translator, write_stub)
    yield made
    for registry in made.registries:
        registry.close()


def call(text: str = "abc") -> TranslateCall:
    return TranslateCall(texts=(text,), options=SearchOptions(k=2))


def translate(registry: Registry, text: str = "abc") -> TranslateResult:
    return asyncio.run(registry.choose().translate(call(text)))


def wait_for_retired() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("retire-"):
            thread.join(TIMEOUT_SECONDS)
            assert not thread.is_alive()


def test_a_promoted_version_answers_and_is_live_on_disk(folder: Folder) -> None:
    registry = folder.registry()
    assert translate(registry).version == OLD
    asyncio.run(registry.promote("en-fr", NEW, reason="test"))
    assert translate(registry).version == NEW
    assert registry.store.live("en-fr") == NEW
    assert registry.store.history("en-fr")[0].reason == "test"


def test_a_rollback_answers_with_the_version_before(folder: Folder) -> None:
    registry = folder.registry()
    for version in (NEW, NEWER):
        registry.promote_now("en-fr", version, reason="test")
    assert asyncio.run(registry.rollback("en-fr")) == NEW
    assert translate(registry).version == NEW
    assert registry.rollback_now("en-fr") == OLD
    assert translate(registry).version == OLD
    with pytest.raises(NoPreviousVersion):
        registry.rollback_now("en-fr")


def test_a_new_version_is_warmed_up_before_it_gets_a_request(folder: Folder) -> None:
    registry = folder.registry()
    registry.promote_now("en-fr", NEW, reason="test")
    translator = folder.loaded[-1]()
    assert translator is not None
    assert (translator.version, translator.num_warm_ups) == (NEW, 1)


def test_running_requests_end_on_the_old_version_and_new_ones_start_on_the_new(
    folder: Folder, make_translator: Any
) -> None:
    held = make_translator(is_held=True)
    held.version = OLD
    folder.make["en-fr"] = lambda: held
    registry = folder.registry()

    async def scenario() -> None:
        running = asyncio.create_task(registry.choose().translate(call()))
        await asyncio.to_thread(held.decoders[-1].begun_step)
        await registry.promote("en-fr", NEW, reason="test")
        assert (await registry.choose().translate(call())).version == NEW
        assert not running.done()
        held.decoders[-1].let_go()
        assert (await running).version == OLD

    asyncio.run(scenario())


def test_a_request_that_comes_to_the_old_version_after_the_switch_is_answered_by_the_new(folder: Folder) -> None:
    """It had picked its version, and was splitting its text in another thread when the switch came."""
    is_preparing, may_go_on = threading.Event(), threading.Event()
    make_old = folder.make["en-fr"]

    def make_slow() -> Any:
        translator = make_old()
        prepare = translator.prepare

        def slow(*args: Any, **kwargs: Any) -> Any:
            is_preparing.set()
            assert may_go_on.wait(TIMEOUT_SECONDS)
            return prepare(*args, **kwargs)

        translator.prepare = slow
        return translator

    folder.make["en-fr"] = make_slow
    registry = folder.registry()
    long = "a" * 2500

    async def scenario() -> TranslateResult:
        running = asyncio.create_task(registry.choose().translate(call(long)))
        await asyncio.to_thread(is_preparing.wait, TIMEOUT_SECONDS)
        await registry.promote("en-fr", NEW, reason="test")
        may_go_on.set()
        return await running

    result = asyncio.run(scenario())
    assert result.version == NEW
    assert result.translations[0].text.replace(" ", "") == long.upper()


def test_a_model_chosen_before_the_switch_is_open_after_it(folder: Folder) -> None:
    registry = folder.registry()
    chosen = registry.choose()
    registry.promote_now("en-fr", NEW, reason="test")
    asyncio.run(chosen.open())
    assert asyncio.run(chosen.translate(call())).version == NEW


@pytest.mark.parametrize(
    "error", [CheckpointError("weights.safetensors", "is missing"), MemoryError("no more"), RuntimeError("driver")]
)
def test_a_version_that_does_not_load_changes_nothing(folder: Folder, error: Exception) -> None:
    def fail() -> Any:
        raise error

    folder.make[NEW] = fail
    registry = folder.registry()
    with pytest.raises(VersionRefused, match=r"is missing|no more|driver"):
        registry.promote_now("en-fr", NEW, reason="test")
    assert registry.store.live("en-fr") == OLD
    assert registry.store.history("en-fr") == []
    assert translate(registry).version == OLD
    assert registry.readiness().is_ready


def test_a_version_whose_warm_up_fails_changes_nothing(folder: Folder) -> None:
    make_new = folder.make[NEW]

    def make_cold() -> Any:
        translator = make_new()
        translator.warm_up = lambda: 1 / 0
        return translator

    folder.make[NEW] = make_cold
    registry = folder.registry()
    with pytest.raises(VersionRefused, match="ZeroDivisionError"):
        registry.promote_now("en-fr", NEW, reason="test")
    assert translate(registry).version == OLD


def test_where_the_pointer_cannot_be_written_nothing_is_switched(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = folder.registry()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.inference.pointer.write_json", full)
    with pytest.raises(CannotStore, match="No space left"):
        registry.promote_now("en-fr", NEW, reason="test")
    assert translate(registry).version == OLD
    wait_for_retired()
    assert [translator() for translator in folder.loaded[1:]] == [None]


def test_a_version_that_is_not_there_is_unknown(folder: Folder) -> None:
    registry = folder.registry()
    with pytest.raises(UnknownVersion):
        registry.promote_now("en-fr", "0" * 12, reason="test")


def test_a_model_of_which_nothing_was_live_can_be_promoted(folder: Folder) -> None:
    folder.publish("fr-en", NEWER)
    registry = folder.registry()
    assert registry.get("fr-en").state == "not_live"
    with pytest.raises(NoModel, match="no version of fr-en is live"):
        asyncio.run(registry.choose(model="fr-en").translate(call()))
    assert registry.choose().name == "en-fr"
    registry.promote_now("fr-en", NEWER, reason="test")
    assert registry.choose(source="fr").name == "fr-en"


def test_a_model_published_after_the_start_can_be_promoted(folder: Folder) -> None:
    registry = folder.registry()
    folder.publish("fr-en", NEWER)
    registry.promote_now("fr-en", NEWER, reason="test")
    assert asyncio.run(registry.choose(source="fr").translate(call())).version == NEWER


def test_the_precision_that_was_measured_is_not_measured_again_for_the_same_network(folder: Folder) -> None:
    registry = folder.registry(precision="auto")
    registry.promote_now("en-fr", NEW, reason="test")
    assert folder.precisions == ["auto", "fp32"]


def test_the_metrics_show_the_live_version_only(folder: Folder) -> None:
    metrics = Metrics()
    registry = Registry(Settings(checkpoints=folder.root, models_poll_seconds=0), metrics, folder.load)
    folder.registries.append(registry)
    registry.start()
    registry.wait_until_loaded(TIMEOUT_SECONDS)
    registry.promote_now("en-fr", NEW, reason="test")

    def info(version: str) -> float | None:
        return metrics.registry.get_sample_value("recurra_model_info", {"model": "en-fr", "version": version})

    assert (info(OLD), info(NEW)) == (None, 1)


def test_the_old_version_is_freed(folder: Folder) -> None:
    registry = folder.registry()
    translate(registry)
    registry.promote_now("en-fr", NEW, reason="test")
    wait_for_retired()
    old, new = folder.loaded
    assert old() is None
    assert new() is not None


def test_switching_under_load_fails_no_request_and_keeps_no_old_version(folder: Folder) -> None:
    registry = folder.registry()
    num_callers, num_switches = 8, 60
    versions: list[str] = []
    is_over = False

    async def caller(number: int) -> None:
        # One in four is long enough to be split in another thread, so that a switch finds it anywhere on its way.
        text = "ab" * (1200 if number % 4 == 0 else 3)
        while not is_over:
            result = await registry.choose().translate(call(text))
            assert result.translations[0].text.replace(" ", "") == text.upper()  # long ones come in pieces
            versions.append(result.version)

    async def scenario() -> None:
        nonlocal is_over
        callers = [asyncio.create_task(caller(number)) for number in range(num_callers)]
        for number in range(num_switches):
            if number % 2:
                await registry.rollback("en-fr")
            else:
                await registry.promote("en-fr", NEW, reason="test")
            num_before = len(versions)
            while len(versions) < num_before + num_callers and not any(task.done() for task in callers):
                await asyncio.sleep(0)
        is_over = True
        await asyncio.gather(*callers)

    asyncio.run(scenario())
    assert set(versions) == {OLD, NEW}
    assert registry.store.live("en-fr") == OLD
    wait_for_retired()
    assert sum(translator() is not None for translator in folder.loaded) == 1
    assert len(folder.loaded) == num_switches + 1


def test_promotions_at_the_same_moment_come_one_after_another(folder: Folder) -> None:
    registry = folder.registry()

    async def scenario() -> None:
        wanted = [NEW, NEWER] * 4
        await asyncio.gather(*(registry.promote("en-fr", version, reason="test") for version in wanted))

    asyncio.run(scenario())
    assert translate(registry).version == registry.store.live("en-fr")


# -- several processes on one folder


def test_two_registries_on_one_folder_follow_each_other(folder: Folder) -> None:
    one, other = folder.registry(), folder.registry()
    one.promote_now("en-fr", NEW, reason="test")
    assert translate(other).version == OLD
    other.follow()
    assert translate(other).version == NEW
    other.rollback_now("en-fr")
    one.follow()
    assert translate(one).version == OLD
    num_loaded = len(folder.loaded)
    one.follow()
    other.follow()
    assert len(folder.loaded) == num_loaded


def test_a_change_is_noticed_without_being_told(folder: Folder) -> None:
    one, other = folder.registry(), folder.registry(models_poll_seconds=0.01)
    one.promote_now("en-fr", NEW, reason="test")
    model = other.get("en-fr")
    has_followed = threading.Event()
    install = model.install

    def watched(*args: Any) -> Any:
        before = install(*args)
        has_followed.set()
        return before

    model.install = watched  # type: ignore[method-assign]
    assert model.version == NEW or has_followed.wait(TIMEOUT_SECONDS)
    assert translate(other).version == NEW


def test_a_version_that_loads_elsewhere_only_is_told_and_not_tried_again(folder: Folder) -> None:
    tries: list[str] = []

    def refuse(path: str | Path, /, **options: Any) -> Any:
        tries.append(Path(path).name)
        if Path(path).name == NEW:
            raise CheckpointError(Path(path) / "weights.safetensors", "needs more memory")
        return folder.load(path, **options)

    one, other = folder.registry(), folder.registry(refuse)
    one.promote_now("en-fr", NEW, reason="test")
    other.follow()
    other.follow()
    assert tries == ["en-fr", NEW]
    assert translate(other).version == OLD
    facts = other.get("en-fr").facts()
    assert (facts["state"], facts["version"]) == ("ready", OLD)
    assert "needs more memory" in facts["cause"]
    assert str(folder.root) not in facts["cause"]
    one.rollback_now("en-fr")
    other.follow()
    assert "cause" not in other.get("en-fr").facts()


def test_a_model_that_appears_later_is_found_once_it_is_whole(folder: Folder) -> None:
    registry = folder.registry()
    (folder.root / "fr-en").mkdir()
    registry.follow()
    assert [model.name for model in registry.models] == ["en-fr"]
    folder.add("fr-en", NEWER)
    registry.follow()
    assert registry.wait_until_loaded(TIMEOUT_SECONDS)
    assert registry.choose(source="fr").name == "fr-en"
    assert registry.readiness().is_ready


def test_a_model_that_failed_is_tried_again_when_its_folder_has_changed(folder: Folder) -> None:
    good = folder.make["en-fr"]

    def fail() -> Any:
        raise CheckpointError("weights.safetensors", "is missing")

    folder.make["en-fr"] = fail
    registry = folder.registry()
    assert registry.get("en-fr").state == "failed"
    folder.make["en-fr"] = good
    registry.follow()
    assert registry.get("en-fr").state == "failed"
    folder.add("en-fr", NEWER)
    registry.follow()
    assert registry.wait_until_loaded(TIMEOUT_SECONDS)
    assert registry.get("en-fr").state == "ready"


def test_a_damaged_pointer_leaves_what_is_served(folder: Folder) -> None:
    registry = folder.registry()
    (folder.root / "en-fr" / "live.json").write_text("{")
    registry.follow()
    assert translate(registry).version == OLD
    assert "live.json" in registry.get("en-fr").facts()["cause"]


def test_after_shutdown_began_nothing_is_promoted(folder: Folder) -> None:
    registry = folder.registry()
    registry.begin_drain()
    with pytest.raises(Draining):
        registry.promote_now("en-fr", NEW, reason="test")
    assert registry.store.live("en-fr") == OLD
