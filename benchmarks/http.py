"""Our server under load, beside our own offline rate and, where it is there, OpenNMT-py's server.

    python -m benchmarks.http checkpoints/en-fr sentences.txt
    python -m benchmarks.http CHECKPOINT sentences.txt --peers FOLDER

Every server runs alone, one after the other, and gets the same requests from the same client (benchmarks/client.py),
which takes its share of the same cores: the last column says how much. `of offline` is the rate of `Translator` over
the same sentences in the same precision, in this process, before any server is started.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.client import CLIENTS, Load, median_of, run
from benchmarks.machine import describe, median_seconds
from benchmarks.servers import (
    Server,
    opennmt_body,
    opennmt_failed,
    opennmt_server,
    recurra_body,
    recurra_server,
)
from model.translator import Translator

Body = Callable[[str | list[str], int], bytes]


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        num_texts: of each request; 1 is a text and no list.
        share: of the sentences asked for, how many of it: a single client is slow.
    """

    num_clients: int
    num_texts: int
    k: int
    share: float = 1.0

    @property
    def name(self) -> str:
        what = f"lists of {self.num_texts}" if self.num_texts > 1 else "one sentence each"
        return f"{self.num_clients} clients, {what}" if self.num_clients > 1 else "1 client, one sentence"

    @property
    def search(self) -> str:
        return "greedy" if self.k == 1 else f"beam {self.k}"

    def bodies(self, lines: Sequence[str], num_sentences: int, body: Body) -> list[bytes]:
        """The requests of one run: the lines over and over."""
        num_requests = max(self.num_clients, int(self.share * num_sentences) // self.num_texts)
        endless = itertools.cycle(lines)
        if self.num_texts == 1:
            return [body(line, self.k) for line in itertools.islice(endless, num_requests)]
        return [body(list(itertools.islice(endless, self.num_texts)), self.k) for _ in range(num_requests)]


CASES = (
    Case(1, 1, 1, share=0.2),
    Case(1, 1, 5, share=0.2),
    Case(32, 1, 1),
    Case(32, 1, 5),
    Case(8, 32, 1, share=2.0),
    Case(8, 32, 5, share=2.0),
)


def main(
    checkpoint: Path,
    sentences: Annotated[Path, typer.Argument(help="A sentence a line.")],
    peers: Annotated[Path | None, typer.Option(help="Folder of OpenNMT-py's models, with server.json.")] = None,
    num_sentences: Annotated[int, typer.Option("--sentences", help="Sentences of a run.")] = 1000,
    peer_sentences: Annotated[int, typer.Option(help="The same for the peer, which is slow.")] = 200,
    client: Annotated[str, typer.Option(help=" or ".join(CLIENTS))] = "lean",
    precision: str = "auto",
    runs: int = 3,
) -> None:
    """Prints a Markdown table."""
    lines = [line for line in sentences.read_text(encoding="utf-8").splitlines() if line.strip()]
    translator = Translator.load(checkpoint, precision=precision)
    print(f"{describe()}; {translator!r}; client {client}; median of {runs}\n", flush=True)
    offline = {k: _offline_rate(translator, lines, k, runs) for k in (1, 5)}
    print("\n".join(f"offline, k = {k}: {rate:,.1f} sentences/s" for k, rate in offline.items()) + "\n", flush=True)
    precision = translator.precision
    del translator
    theirs: dict[Case, list[Load]] = {}
    if peers is not None:
        with opennmt_server(peers) as server:
            theirs = {
                case: _loads(server, case, lines, peer_sentences, opennmt_body, client, runs, opennmt_failed)
                for case in CASES
            }
    print(_HEAD + (_PEER_HEAD if theirs else ""))
    print("|---" * (9 + 4 * bool(theirs)) + "|")
    with recurra_server(checkpoint, precision=precision) as server:
        for case in CASES:
            loads = _loads(server, case, lines, num_sentences, recurra_body, client, runs)
            row = _row(case, loads, offline[case.k])
            print(row + (_peer_row(case, loads, theirs[case]) if theirs else ""), flush=True)


_HEAD = "| load | search | sentences/s | p50 ms | p95 ms | p99 ms | failed | of offline | client, cores |"
_PEER_HEAD = " OpenNMT-py sentences/s | p50 ms | failed | ours, sentences/s and p50 |"


def _offline_rate(translator: Translator, lines: list[str], k: int, runs: int) -> float:
    return len(lines) / median_seconds(lambda: translator.translate(lines, k=k), runs)


def _loads(
    server: Server,
    case: Case,
    lines: list[str],
    num_sentences: int,
    body: Body,
    client: str,
    runs: int,
    is_failure: Callable[[int, bytes], bool] = lambda status, _: status != 200,
) -> list[Load]:
    bodies = case.bodies(lines, num_sentences, body)

    async def measure() -> list[Load]:
        async def one(chosen: Sequence[bytes]) -> Load:
            return await run(server.address, chosen, num_clients=case.num_clients, client=client, is_failure=is_failure)

        await one(bodies[: max(case.num_clients, len(bodies) // 5)])  # does not count
        return [await one(bodies) for _ in range(runs)]

    return asyncio.run(measure())


def _rate(case: Case, loads: Sequence[Load]) -> float:
    return median_of(loads, lambda load: case.num_texts * len(load.latencies) / load.seconds)


def _row(case: Case, loads: Sequence[Load], offline: float) -> str:
    rate = _rate(case, loads)
    p50, p95, p99 = (median_of(loads, lambda load, q=q: load.percentile_ms(q)) for q in (0.5, 0.95, 0.99))  # type: ignore[misc]
    failed = sum(load.num_failed for load in loads)
    cores = median_of(loads, lambda load: load.client_cores)
    return (
        f"| {case.name} | {case.search} | {rate:,.1f} | {p50:,.1f} | {p95:,.1f} | {p99:,.1f} | {failed} "
        f"| {rate / offline:.0%} | {cores:.2f} |"
    )


def _peer_row(case: Case, ours: Sequence[Load], theirs: Sequence[Load]) -> str:
    rate = _rate(case, theirs)
    p50, our_p50 = (median_of(loads, lambda load: load.percentile_ms(0.5)) for loads in (theirs, ours))
    failed = sum(load.num_failed for load in theirs)
    return f" {rate:,.1f} | {p50:,.1f} | {failed} | {_rate(case, ours) / rate:.1f} ×, 1/{p50 / our_p50:.1f} |"


if __name__ == "__main__":
    typer.run(main)
