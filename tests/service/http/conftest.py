"""A translator that upper-cases words, and a server around it on a real port: tests speak HTTP as callers do."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from model.decoding.search import Hypothesis, SearchOptions, SegmentResult
from model.errors import CheckpointError
from model.translator import Alternative, Prepared, Translation
from service.app import create_app
from service.settings import Settings

WAIT_SECONDS = 10.0  # for events that come at once unless something is broken


@dataclass
class FakeDecoder:
    """A step a source token: segments end in the order of their lengths. Step 0 waits until the gate is open."""

    owner: FakeTranslator
    max_rows: int
    live: dict[int, tuple[list[int], SearchOptions, int]] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return sum(options.k for _, options, _ in self.live.values())

    @property
    def num_segments(self) -> int:
        return len(self.live)

    num_live = num_segments

    def can_add(self, options: SearchOptions) -> bool:
        return self.num_rows + options.k <= self.max_rows

    def add(self, segments: list[tuple[list[int], SearchOptions]]) -> list[int]:
        handles = []
        for ids, options in segments:
            handle = next(self.owner.handles)
            self.live[handle] = (list(ids), options, len(ids))
            handles.append(handle)
        self.owner.most_rows = max(self.owner.most_rows, self.num_rows)
        self.owner.encoded.append([len(ids) for ids, _ in segments])
        return handles

    def step(self) -> list[tuple[int, SegmentResult]]:
        self.owner.is_stepping.set()
        assert self.owner.gate.wait(WAIT_SECONDS)
        if any(self.owner.words[i] == "boom" for ids, _, _ in self.live.values() for i in ids):
            raise RuntimeError("out of memory")
        done = []
        for handle, (ids, options, left) in list(self.live.items()):
            self.live[handle] = (ids, options, left - 1)
            if left == 1:
                del self.live[handle]
                self.owner.finished.append(ids)
                hypotheses = tuple(
                    Hypothesis(token_ids=(*options.prefix_ids, *ids), log_prob=-1.0 - n, score=-0.5 - n, finish="eos")
                    for n in range(options.n_best)
                )
                done.append((handle, SegmentResult(hypotheses=hypotheses, num_steps=len(ids))))
        return done

    def cancel(self, handle: int) -> None:
        self.live.pop(handle, None)
        self.owner.is_cancelled.set()


class FakeTranslator:
    """Answers HELLO to hello; a line is a segment."""

    src_lang, tgt_lang, device, precision, num_parameters = "en", "fr", "cpu", "fp32", 7

    def __init__(self, name: str) -> None:
        self.name, self.version = name, f"{name}-v1"
        self.metadata: dict[str, Any] = {"bleu": 12.5}
        self.words: list[str] = []
        self.handles = iter(range(1, 10**9))
        self.gate, self.is_stepping, self.is_cancelled = threading.Event(), threading.Event(), threading.Event()
        self.gate.set()
        self.finished: list[list[int]] = []
        self.encoded: list[list[int]] = []
        self.most_rows = 0

    def warm_up(self) -> None:
        pass

    def decoder(self, *, max_rows: int = 512) -> FakeDecoder:
        return FakeDecoder(self, max_rows)

    def _ids(self, text: str) -> list[int]:
        self.words += text.split()
        return list(range(len(self.words) - len(text.split()), len(self.words)))

    def prepare(self, text: str, *, prefix: str = "") -> Prepared:
        lines = [line for line in text.splitlines() if line.strip()]
        segments = [self._ids(line) for line in lines]
        layout = ["\n"] * len(segments) if segments else [text]
        return Prepared(segments=segments, layout=layout, prefix_ids=tuple(self._ids(prefix)))

    def options_for(self, prepared: Prepared, options: SearchOptions) -> list[SearchOptions]:
        first = SearchOptions(**{**options.__dict__, "prefix_ids": prepared.prefix_ids})
        return [first, *[options] * (len(prepared.segments) - 1)][: len(prepared.segments)]

    def _text(self, hypothesis: Hypothesis) -> str:
        return " ".join(self.words[i].upper() for i in hypothesis.token_ids)

    def finish(self, prepared: Prepared, results: list[SegmentResult]) -> Translation:
        best = [result.hypotheses[0] for result in results]
        others = results[0].hypotheses[1:] if len(results) == 1 else ()
        return Translation(
            text="\n".join(map(self._text, best)) if best else prepared.layout[0],
            score=sum(h.score for h in best),
            log_prob=sum(h.log_prob for h in best),
            finish="eos",
            alternatives=tuple(Alternative(text=self._text(h), score=h.score, log_prob=h.log_prob) for h in others),
            num_source_tokens=sum(map(len, prepared.segments)),
            num_target_tokens=sum(len(h.token_ids) for h in best),
        )


class Server:
    """A running service; `translators` by name once they are loaded."""

    def __init__(self, settings: Settings, may_load: threading.Event) -> None:
        self.translators: dict[str, FakeTranslator] = {}

        def load(path: str | Path, /, **_: Any) -> FakeTranslator:
            assert may_load.wait(WAIT_SECONDS)
            if Path(path).name.startswith("broken"):
                raise CheckpointError(Path(path) / "weights.safetensors", "has 3 bytes instead of 9: truncated")
            return self.translators.setdefault(Path(path).name, FakeTranslator(Path(path).name))

        self.app = create_app(settings, load=load)
        config = uvicorn.Config(self.app, port=0, log_config=None, access_log=False, ws="none", lifespan="on")
        config.timeout_graceful_shutdown = 5
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._uvicorn.serve()), daemon=True)

    def start(self) -> None:
        self._thread.start()
        ends_at = threading.Event()
        while not self._uvicorn.started:
            assert self._thread.is_alive(), "the server did not start"
            ends_at.wait(0.005)
        port = self._uvicorn.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=WAIT_SECONDS)

    def ask_to_stop(self) -> None:
        self._uvicorn.should_exit = True

    def stop(self) -> None:
        for translator in self.translators.values():
            translator.gate.set()
        self.client.close()
        self.ask_to_stop()
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive(), "the server did not stop"

    @property
    def translator(self) -> FakeTranslator:
        return next(iter(self.translators.values()))

    def until_ready(self) -> Server:
        poll_until(lambda: self.client.get("/health/ready").status_code == 200)
        return self

    poll_until = staticmethod(lambda is_so: poll_until(is_so))

    def translate(self, text: Any = "hello", **fields: Any) -> httpx.Response:
        return self.client.post("/translate", json={"text": text, **fields})

    def metric(self, line: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(found.split()[-1]) for found in lines if found.startswith(line + " ")), 0.0)


def poll_until(is_so: Callable[[], bool]) -> None:
    """For states that only HTTP shows; ends as soon as it holds, fails when it never does."""
    pause = threading.Event()
    for _ in range(int(WAIT_SECONDS / 0.01)):
        if is_so():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to hold")


Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a server: `serve("en-fr", max_rows=8)`; folders named broken… fail to load."""
    with contextlib.ExitStack() as stack:

        def start(*models: str, may_load: threading.Event | None = None, **settings: Any) -> Server:
            (tmp_path / "checkpoints").mkdir()
            for model in models:
                (tmp_path / "checkpoints" / model).mkdir()
            if may_load is None:
                may_load = threading.Event()
                may_load.set()
            server = Server(Settings(checkpoints=tmp_path / "checkpoints", **settings), may_load)
            server.start()
            stack.callback(server.stop)
            stack.callback(may_load.set)
            return server

        yield start


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve("en-fr").until_ready()
