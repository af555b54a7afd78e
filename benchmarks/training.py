"""Target tokens a second of training, by this trainer and, where it is set up, by OpenNMT-py.

    python -m benchmarks.training train.en.gz train.de.gz --preset reference
    python -m benchmarks.training train.en.gz train.de.gz --peers FOLDER    # FOLDER/rnn.yaml, FOLDER/venv

`reference` is the network that the peers were measured with: two bidirectional LSTM layers of 256 a direction, two LSTM
decoder layers of 512, embeddings of 256, general attention, input feeding, 8,000 shared BPE pieces, 16 M parameters.
The pieces are learnt first, which does not count; nor do the first steps.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.machine import describe
from model.config import PRESETS, Preset
from model.data.corpus import Example, read_pairs
from model.training import Trainer

REFERENCE = PRESETS["luong2015"].with_options(
    {
        "embedding_dim": 256,
        "encoder_dim": 256,
        "bidirectional_layers": 2,
        "reverse_source": False,
        "vocab_size": 8000,
        "model_type": "bpe",
        "dropout": 0.3,
        "embedding_dropout": 0.3,
        "readout_dropout": 0.3,
        "variational": False,
        "clip_norm": 5.0,
    }
)
_WARM_UP_STEPS = 20
_PEER_LINE = re.compile(r"Step (\d+)/.*?(\d+)/\s*(\d+) tok/s")


def main(
    source: Annotated[Path, typer.Argument(help="A sentence a line; gzip is read as it is.")],
    target: Annotated[Path, typer.Argument(help="Its translation on the same line.")],
    preset: Annotated[str, typer.Option(help="reference, or names from model/config.py, separated by commas.")] = (
        "reference"
    ),
    batch_tokens: Annotated[int, typer.Option(help="Padded tokens a batch; 1,000 are about 64 sentences.")] = 1000,
    steps: int = 120,
    precision: str = "auto",
    peers: Annotated[Path | None, typer.Option(help="Folder with OpenNMT-py's venv and rnn.yaml.")] = None,
) -> None:
    """Prints a Markdown table."""
    print(f"{describe()}; {steps} steps\n")
    print("| trainer | network | parameters | precision | tokens a batch | target tokens/s |")
    print("|---|---|---|---|---|---|")
    for name in preset.split(","):
        chosen = REFERENCE if name == "reference" else PRESETS[name]
        print(f"| recurra | {name} | {_ours(chosen, source, target, batch_tokens, steps, precision)} |", flush=True)
    if peers:
        print(f"| OpenNMT-py | reference | {_theirs(peers, steps)} |")


def _ours(preset: Preset, source: Path, target: Path, batch_tokens: int, steps: int, precision: str) -> str:
    pairs = list(read_pairs(source, tgt_path=target))
    options = {"batch_tokens": batch_tokens, "max_steps": _WARM_UP_STEPS + steps, "precision": precision}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            Path(folder) / "run",
            preset=preset.with_options(options),
            pairs=pairs,
            dev=[Example(pairs[0].src, (pairs[0].tgt,))],
            src_lang="en",
            tgt_lang="de",
        )
        moments: list[float] = []
        tokens: list[int] = []
        original = trainer._meter.add

        def add(loss_sum: float, num_tokens: int, seconds: float) -> None:
            moments.append(time.perf_counter())
            tokens.append(num_tokens)
            original(loss_sum, num_tokens, seconds)

        trainer._meter.add = add  # type: ignore[method-assign]
        trainer.train()
    seconds = moments[-1] - moments[_WARM_UP_STEPS - 1]
    counted = tokens[_WARM_UP_STEPS:]
    rate = sum(counted) / seconds
    size = f"{trainer.network.num_parameters / 1e6:.2f} M"
    return f"{size} | {trainer.precision} | {statistics.mean(counted):,.0f} target | {rate:,.0f}"


def _theirs(folder: Path, steps: int) -> str:
    """OpenNMT-py on its own configuration, cut short; the median of its reports after the first."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "rnn.yaml"
        replaced = {
            "save_model": f"{scratch}/rnn",
            "train_steps": steps,
            "valid_steps": 10 * steps,
            "save_checkpoint_steps": 10 * steps,
        }
        lines = [
            line
            for line in (folder / "rnn.yaml").read_text().splitlines()
            if line.split(":")[0] not in {*replaced, "save_data"}
        ]
        config.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in replaced.items())]) + "\n")
        command = ["venv/bin/python", "venv/bin/onmt_train", "-config", str(config)]
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    rates = [int(match[3]) for match in _PEER_LINE.finditer(done.stdout + done.stderr)]
    return f"16.08 M | fp32 | 64 sentences | {statistics.median(rates[1:]):,.0f}"


if __name__ == "__main__":
    typer.run(main)
