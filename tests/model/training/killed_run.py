"""Trains a tiny model in processes that are killed, one after the other, until one comes to the end.

    python killed_run.py FOLDER never | time SEED | files SEED

`time` kills after a random while; `files` at a random one of the moments just before and just after a file is synced,
renamed or deleted. Prints the number of kills. A program of its own because it forks, which is safe only while no other
thread runs.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model.config import PRESETS
from model.data.corpus import read_examples, read_pairs
from model.training import Trainer

DATA = Path(__file__).parents[2] / "data"
PRESET = PRESETS["small"].with_options(
    {
        "embedding_dim": 8,
        "readout_dim": 8,
        "encoder_dim": 6,
        "decoder_dim": 7,
        "vocab_size": 120,
        "max_epochs": 4,
        "batch_tokens": 128,
        "learning_rate": 0.01,
        "warmup_steps": 4,
        "recurrent_dropout": 0.1,
        "subword_sampling": 0.2,
        "average_checkpoints": 2,
        "eval_sentences": 3,
        "patience": 2,
        "checkpoint_minutes": 0.01,
    }
)
MAX_KILLS = 40  # then one that is left alone


def train(folder: Path) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(
        folder / "run",
        preset=PRESET,
        pairs=list(read_pairs(DATA / "tiny.en-fr.tsv")),
        dev=read_examples(DATA / "tiny-dev.en-fr.jsonl", src_lang="en", tgt_lang="fr"),
        src_lang="en",
        tgt_lang="fr",
        resume=None,
    )
    trainer.train()
    trainer.finish(folder / "en-fr", {})


def kill_at_file_operation(number: int) -> None:
    """Ends this process just before or after its n-th sync, rename or deletion."""
    left = number

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = operation(*args, **kwargs)
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    os.fsync = counted(os.fsync)
    os.replace = counted(os.replace)
    os.unlink = counted(os.unlink)


def run_once(folder: Path, mode: str, chance: random.Random) -> int:
    """The exit status of one process; negative where it was killed."""
    operation, delay = chance.randrange(1, 40), chance.uniform(0.02, 0.6)
    child = os.fork()
    if child == 0:
        if mode == "files":
            kill_at_file_operation(operation)
        status = 1
        try:
            train(folder)
            status = 0
        finally:
            os._exit(status)
    if mode == "time":
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    chance = random.Random(int(sys.argv[3]) if mode != "never" else 0)
    for num_kills in range(MAX_KILLS + 1):
        status = run_once(folder, mode if num_kills < MAX_KILLS else "never", chance)
        if status >= 0:
            print(num_kills)
            raise SystemExit(status)


if __name__ == "__main__":
    main()
