"""A stand-in for a loaded model, whose steps a test can hold and release; and a client for an app without a network."""

from __future__ import annotations

import asyncio
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from model.decoding.search import Hypothesis, SearchOptions, SegmentResult
from model.errors import CheckpointError
from model.translator import Translator
from service.app import create_app
from service.dependencies import Services
from service.inference.registry import Loader
from service.settings import Settings

TIMEOUT_SECONDS = 30.0  # for what takes milliseconds; only a failing test waits so long


class StubDecoder:
    """A decoding loop without a network: a segment is done after as many steps as it has source tokens.

    Attributes:
        batches: source ids of each call of `add`.
        entered: the live segments' source ids, put there when a step begins; only where steps are held.
        fail_steps, fail_adds: so many coming calls raise.
    """

    def __init__(self, max_rows: int, *, is_held: bool = False) -> None:
        self.max_rows = max_rows
        self.batches: list[list[list[int]]] = []
        self.cancelled: list[list[int]] = []
        self.entered: queue.Queue[list[list[int]]] = queue.Queue()
        self.fail_steps = 0
        self.fail_adds = 0
        self._is_held = is_held
        self._go = threading.Semaphore(0)
        self._live: dict[int, tuple[list[int], SearchOptions, int]] = {}
        self._next_handle = 0

    @property
    def num_rows(self) -> int:
        return sum(options.k for _, options, _ in self._live.values())

    @property
    def num_segments(self) -> int:
        return len(self._live)

    def add(self, segments: Sequence[tuple[list[int], SearchOptions]]) -> list[int]:
        if self.fail_adds:
            self.fail_adds -= 1
            raise RuntimeError("out of memory")
        self.batches.append([ids for ids, _ in segments])
        handles = list(range(self._next_handle, self._next_handle + len(segments)))
        self._next_handle += len(segments)
        self._live.update({h: (ids, options, len(ids)) for h, (ids, options) in zip(handles, segments, strict=True)})
        return handles

    def step(self) -> list[tuple[int, SegmentResult]]:
        if self._is_held:
            self.entered.put([ids for ids, _, _ in self._live.values()])
            assert self._go.acquire(timeout=TIMEOUT_SECONDS), "nobody released this step"
        if self.fail_steps:
            self.fail_steps -= 1
            raise RuntimeError("the device is gone")
        self._live = {h: (ids, options, left - 1) for h, (ids, options, left) in self._live.items()}
        done = {handle: entry for handle, entry in self._live.items() if entry[2] == 0}
        for handle in done:
            del self._live[handle]
        return [(handle, _result(ids, options)) for handle, (ids, options, _) in done.items()]

    def cancel(self, handle: int) -> None:
        self.cancelled.append(self._live.pop(handle)[0])

    def cut(self, handle: int) -> SegmentResult | None:
        ids, _, left = self._live[handle]
        agreed = self.agreed_ids(handle)
        self.cancel(handle)
        if left == len(ids):
            return None
        best = Hypothesis(token_ids=tuple(agreed), log_prob=-1.0, score=-0.5, finish="deadline")
        return SegmentResult(hypotheses=(best,), num_steps=len(agreed))

    def agreed_ids(self, handle: int) -> list[int]:
        """A token a step."""
        ids, _, left = self._live[handle]
        return ids[: len(ids) - left]

    def begun_step(self) -> list[list[int]]:
        """Waits until a step begins; the source ids of the segments that are live in it."""
        return self.entered.get(timeout=TIMEOUT_SECONDS)

    def release(self, num_steps: int = 1) -> None:
        """Lets so many steps run."""
        self._go.release(num_steps)

    def let_go(self) -> None:
        """Holds no step any more."""
        self._is_held = False
        self._go.release(1000)


def _result(ids: list[int], options: SearchOptions) -> SegmentResult:
    token_ids = (*options.prefix_ids, *ids[:-1])
    hypotheses = tuple(
        Hypothesis(token_ids=token_ids, log_prob=-1.0 - rank, score=-0.5 - rank, finish="eos")
        for rank in range(options.n_best)
    )
    return SegmentResult(hypotheses=hypotheses, num_steps=len(ids))


class _StubTokenizer:
    """Character codes."""

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids)).upper()


class StubTranslator(Translator):
    """Translates to capital letters; tokens are characters, so that a test reads what the engine was given.

    Splitting and joining are the true ones, loading and decoding are not.
    """

    def __init__(self, *, src_lang: str = "en", tgt_lang: str = "fr", is_held: bool = False) -> None:
        self.name = f"{src_lang}-{tgt_lang}"
        self.version = "0123456789ab"
        self.src_lang, self.tgt_lang = src_lang, tgt_lang
        self.device, self.precision, self.num_parameters = "cpu", "fp32", 7
        self.metadata = {"model": {"cell": "gru"}, "licence": "CC BY"}
        self.src_tokenizer = self.tgt_tokenizer = cast(Any, _StubTokenizer())
        self.decoders: list[StubDecoder] = []
        self.new_decoders: queue.Queue[StubDecoder] = queue.Queue()
        self.num_warm_ups = 0
        self._is_held = is_held

    def warm_up(self) -> None:
        self.num_warm_ups += 1

    def decoder(self, *, max_rows: int = 320) -> Any:
        self.decoders.append(StubDecoder(max_rows, is_held=self._is_held))
        self.new_decoders.put(self.decoders[-1])
        return self.decoders[-1]


class AppClient:
    """Calls an app directly; its engines run, no socket is opened."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self._runner = asyncio.Runner()
        self._lifespan: AbstractAsyncContextManager[Any] = app.router.lifespan_context(app)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://recurra")

    def __enter__(self) -> AppClient:
        self._runner.run(self._lifespan.__aenter__())
        return self

    def __exit__(self, *exc: object) -> None:
        self._runner.run(self._http.aclose())
        self._runner.run(self._lifespan.__aexit__(None, None, None))
        self._runner.close()

    @property
    def services(self) -> Services:
        services = self.app.state.services
        assert isinstance(services, Services)
        return services

    def wait_until_loaded(self) -> AppClient:
        assert self.services.registry.wait_until_loaded(TIMEOUT_SECONDS)
        return self

    def run(self, work: Any) -> Any:
        return self._runner.run(work)

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self._runner.run(self._http.get(path, **kwargs))

    def post(self, path: str, json: Any = None, **kwargs: Any) -> httpx.Response:
        return self._runner.run(self._http.post(path, json=json, **kwargs))

    def request(self, method: str, path: str) -> httpx.Response:
        return self._runner.run(self._http.request(method, path))

    def post_together(self, path: str, bodies: Sequence[Any]) -> list[httpx.Response]:
        async def all_of_them() -> list[httpx.Response]:
            return await asyncio.gather(*(self._http.post(path, json=body) for body in bodies))

        return self._runner.run(all_of_them())


Serve = Callable[..., AbstractAsyncContextManager[AppClient]]


def loader_of(translators: dict[str, StubTranslator | Exception]) -> Loader:
    """Loads by folder name; an exception is raised."""

    def load(path: str | Path, /, **_: Any) -> Translator:
        found = translators[Path(path).name]
        if isinstance(found, Exception):
            raise found
        return found

    return load


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., Any]:
    """`serve(en-fr=…, max_k=…)`: an app with these models and settings, loaded, as a context manager."""

    @contextmanager
    def serving(
        translators: dict[str, StubTranslator | Exception] | None = None, **settings: Any
    ) -> Iterator[AppClient]:
        models = {"en-fr": StubTranslator()} if translators is None else translators
        for name in models:
            (tmp_path / "models" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "models").mkdir(exist_ok=True)
        app = create_app(
            Settings(**{"checkpoints": tmp_path / "models", "data": tmp_path / "data", **settings}),
            load=loader_of(models),
        )
        with AppClient(app) as client:
            yield client.wait_until_loaded()

    return serving


@pytest.fixture
def client(serve: Callable[..., Any]) -> Iterator[AppClient]:
    """An app with one stand-in model en-fr, ready."""
    with serve() as app_client:
        yield app_client


@pytest.fixture(scope="session")
def models_folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with the tiny trained one, en-fr."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(tiny_checkpoint, folder / "en-fr")
    return folder


@pytest.fixture(scope="module")
def real_client(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    """An app with the tiny trained model."""
    data = tmp_path_factory.mktemp("data")
    settings = Settings(checkpoints=models_folder, data=data, precision="fp32", num_threads=1)
    with AppClient(create_app(settings)) as app_client:
        yield app_client.wait_until_loaded()


@pytest.fixture
def broken() -> CheckpointError:
    return CheckpointError("weights.safetensors", "has 3 bytes instead of 9: truncated or altered")


@pytest.fixture
def make_translator() -> type[StubTranslator]:
    """The stand-in's class, for tests that build their own."""
    return StubTranslator
