"""What each process of tests/model/training/test_distributed.py runs.

    one_of_several FOLDER BATCH_TOKENS [STEP]

At STEP the process of rank 1 kills itself, the first time that it comes there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from model.config import PRESETS
from model.data.corpus import read_examples, read_pairs
from model.distributed import num_restarts
from model.training import Progress, Trainer

DATA = Path(__file__).parents[2] / "data"
OPTIONS = {
    "embedding_dim": 8,
    "readout_dim": 8,
    "encoder_dim": 6,
    "decoder_dim": 7,
    "vocab_size": 120,
    "max_epochs": 3,
    "warmup_steps": 4,
    "learning_rate": 0.004,
    "eval_sentences": 3,
    "log_every_seconds": 1000,  # a report an evaluation: the mean loss of the epoch
    "embedding_dropout": 0.0,
    "dropout": 0.0,
    "readout_dropout": 0.0,
}


def main() -> None:
    torch.set_num_threads(1)
    folder, batch_tokens = Path(sys.argv[1]), int(sys.argv[2])
    fatal_step = int(sys.argv[3]) if len(sys.argv) > 3 else None
    trainer = Trainer(
        folder / "run",
        preset=PRESETS["small"].with_options({**OPTIONS, "batch_tokens": batch_tokens}),
        pairs=list(read_pairs(DATA / "tiny.en-fr.tsv")),
        dev=read_examples(DATA / "tiny-dev.en-fr.jsonl", src_lang="en", tgt_lang="fr"),
        src_lang="en",
        tgt_lang="fr",
        resume=None,
    )
    losses: list[float] = []

    def hear(progress: Progress) -> None:
        losses.append(progress.loss)

    def stop() -> bool:
        if trainer.step == fatal_step and trainer.group.rank == 1 and num_restarts() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    trainer.train(on_progress=hear, should_stop=stop)
    if trainer.group.is_main:
        trainer.finish(folder / "en-fr", {})
        (folder / "losses.json").write_text(json.dumps([losses, num_restarts()]))


if __name__ == "__main__":
    main()
