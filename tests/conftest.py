"""What several test modules share: the project's own small data, and a model trained on it for seconds."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI

from model.checkpoint import save_checkpoint
from model.config import PRESETS, Preset
from model.data.corpus import Example, Pair, read_examples, read_pairs
from model.training import Trainer

DATA = Path(__file__).parent / "data"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

torch.set_num_threads(1)  # tiny tensors: a second thread only waits


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the measuring data run where it is there."""
    if not SHARED_DATA.is_dir():
        for item in items:
            if item.get_closest_marker("shared_data"):
                item.add_marker(pytest.mark.skip(reason="the measuring data is not beside the checkout"))


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    return list(read_pairs(DATA / "tiny.en-fr.tsv"))


@pytest.fixture(scope="session")
def dev() -> list[Example]:
    return read_examples(DATA / "tiny-dev.en-fr.jsonl", src_lang="en", tgt_lang="fr")


@pytest.fixture(scope="session")
def tiny_preset() -> Preset:
    """A network that trains in a second."""
    return PRESETS["small"].with_options(
        {
            "embedding_dim": 24,
            "readout_dim": 24,
            "encoder_dim": 20,
            "decoder_dim": 28,
            "vocab_size": 160,
            "max_epochs": 3,
            "batch_tokens": 256,
            "warmup_steps": 5,
            "learning_rate": 0.01,
            "eval_sentences": 5,
        }
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair], dev: list[Example], tiny_preset: Preset
) -> Path:
    """The folder of a checkpoint en-fr that was trained for three epochs."""
    folder = tmp_path_factory.mktemp("models")
    trainer = Trainer(
        tmp_path_factory.mktemp("run") / "en-fr", preset=tiny_preset, pairs=pairs, dev=dev, src_lang="en", tgt_lang="fr"
    )
    trainer.train()
    weights = dict(trainer.network.state_dict())
    return save_checkpoint(trainer.checkpoint(weights, {"preset": "small"}), folder / "en-fr")


@pytest.fixture(scope="session")
def listen() -> Callable[[FastAPI], AbstractContextManager[httpx.Client]]:
    """`listen(app)`: the app on a free port and a client of it, ready, as a context manager."""

    @contextmanager
    def listening(app: FastAPI) -> Iterator[httpx.Client]:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
                while client.get("/health/ready").status_code != 200:
                    assert thread.is_alive()
                yield client
        finally:
            server.should_exit = True
            thread.join()

    return listening
