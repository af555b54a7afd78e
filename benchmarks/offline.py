"""Sentences a second of a checkpoint over a file, for each precision, search and size of the table.

    python -m benchmarks.offline checkpoints/en-fr sentences.txt
    python -m benchmarks.offline CHECKPOINT sentences.txt --peers FOLDER    # also OpenNMT-py, in the same run

The last columns say how much of the machine a decode step reaches: its own products (2 · weights · rows) a second,
beside what one large product of the same precision and as many rows reaches in the same run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.machine import describe, median_seconds
from benchmarks.peers import opennmt_rate
from model.decoding.offline import decode_all
from model.decoding.search import SearchOptions
from model.network.packed import PACKED
from model.translator import Translator

_PEER_BATCH = 64  # where it is fastest


def main(
    checkpoint: Path,
    sentences: Annotated[Path, typer.Argument(help="A sentence a line.")],
    precisions: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(PACKED),
    widths: Annotated[str, typer.Option(help="Beam widths, separated by commas.")] = "1,5",
    rows: Annotated[
        str, typer.Option(help="Sizes of the table, separated by commas; 0 for one sentence.")
    ] = "0,64,320",
    runs: int = 3,
    peers: Annotated[Path | None, typer.Option(help="Folder with OpenNMT-py's venv, models and data.")] = None,
) -> None:
    """Prints a Markdown table. The peer runs before and after ours, and the mean of the two rates is its rate."""
    lines = sentences.read_text(encoding="utf-8").splitlines()
    print(f"{describe()}; {len(lines)} sentences, median of {runs}\n")
    print("| precision | k | rows | sentences/s | target tokens/s | step, rows/s | of the product rate |")
    print("|---|---|---|---|---|---|---|")
    cases = [(k, num_rows) for k in map(int, widths.split(",")) for num_rows in map(int, rows.split(","))]
    theirs = [_theirs(peers, cases, runs)] if peers else []
    for precision in precisions.split(","):
        translator = Translator.load(checkpoint, precision=precision)
        for k, num_rows in cases:
            print(_line(translator, lines, k, num_rows, runs), flush=True)
    if peers:
        theirs.append(_theirs(peers, cases, runs))
        for case in theirs[0]:
            k, batch = case
            rates = [rate[case] for rate in theirs]
            print(
                f"| OpenNMT-py, fp32 | {k} | batch of {batch} | {sum(rates) / 2:.1f} ({rates[0]:.1f}, {rates[1]:.1f}) |"
            )


def _theirs(peers: Path, cases: list[tuple[int, int]], runs: int) -> dict[tuple[int, int], float]:
    """Sentences a second by beam and batch: of one, and of its best."""
    wanted = sorted({(k, _PEER_BATCH if num_rows else 1) for k, num_rows in cases})
    return {(k, batch): opennmt_rate(peers, beam=k, batch=batch, runs=runs) for k, batch in wanted}


def _line(translator: Translator, lines: list[str], k: int, num_rows: int, runs: int) -> str:
    chosen = lines if num_rows else lines[: len(lines) // 10]
    segments = [s for line in chosen for s in translator.prepare(line).segments]
    options = SearchOptions(search="greedy" if k == 1 else "beam", k=k)
    num_tokens = 0

    def decode() -> None:
        nonlocal num_tokens
        done = decode_all(translator.decoder(max_rows=max(num_rows, k)), [(ids, options) for ids in segments])
        num_tokens = sum(len(result.hypotheses[0].token_ids) + 1 for _, result in done)

    seconds = median_seconds(decode, runs)
    rate, share = _step_rate(translator, max(num_rows, k))
    return (
        f"| {translator.precision} | {k} | {num_rows or 'one sentence'} | {len(chosen) / seconds:.1f} "
        f"| {num_tokens / seconds:,.0f} | {rate:,.0f} | {share:.0%} |"
    )


def _step_rate(translator: Translator, num_rows: int) -> tuple[float, float]:
    """Rows a second of the network's step alone, and its products' share of what one large product reaches."""
    network = translator.network
    config = network.config
    memory, state = network.encode(torch.full((num_rows, 16), 4), [14] * num_rows)
    ids = torch.full((num_rows,), 4)
    step = median_seconds(lambda: network.step(ids, state, (memory,)), 20)
    linear = PACKED[translator.precision](torch.randn(2048, 1024) / 32, None)
    x = linear.prepare(torch.rand(num_rows, 1024))
    product = 2 * num_rows * 1024 * 2048 / median_seconds(lambda: linear(x), 50)
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[config.cell]
    dense = config.readout_dim if config.input_feeding else 0
    weights = gates * config.decoder_dim * (dense + config.decoder_dim)
    weights += (config.decoder_layers - 1) * gates * config.decoder_dim * 2 * config.decoder_dim
    weights += (config.decoder_dim + config.memory_dim) * config.readout_dim
    weights += config.readout_dim * config.tgt_vocab_size
    return num_rows / step, 2 * weights * num_rows / step / product


if __name__ == "__main__":
    typer.run(main)
