"""Several processes that train one network: who this one is among them, and what they tell one another.

`torchrun` (torch.distributed.run) starts the processes and gives each its rank in the environment; alone, a process is
rank 0 of 1 and nothing here costs anything. Tensors on a CPU travel by gloo, those on a GPU by NCCL. Knows no network
and no text.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from model.errors import InvalidValue, RecurraError, TrainingError
from model.parent import die_with_parent

MAX_PROCESSES = 64
_VERDICT_PATH = "RECURRA_VERDICT_PATH"  # set by `launch` for its workers: where an error that is final is written
_NUM_RESTARTS = "RECURRA_NUM_RESTARTS"  # set by `launch` as well
_JOIN_TIMEOUT = timedelta(seconds=60)
# The others wait while rank 0 translates the dev set; a peer that dies is noticed at once.
_TIMEOUT = timedelta(hours=6)


def launch_command(nproc: int, module: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs `python -m module arguments` in `nproc` processes of this machine. When one dies, torchrun
    ends the others.

    Raises:
        InvalidValue: `nproc` is below 1 or above `MAX_PROCESSES`.
    """
    if not 1 <= nproc <= MAX_PROCESSES:
        raise InvalidValue("nproc", nproc, f"a whole number from 1 to {MAX_PROCESSES}")
    if nproc == 1:
        return [sys.executable, "-m", module, *arguments]
    run = ["--standalone", f"--nproc-per-node={nproc}", "--max-restarts=0", "--monitor-interval=0.2"]
    return [sys.executable, "-m", "torch.distributed.run", *run, "-m", "--", module, *arguments]


def launch_environment(nproc: int) -> dict[str, str]:
    """The environment of `launch_command`: this process's, with the cores shared out among the processes."""
    threads = str(max(1, (os.cpu_count() or 1) // nproc))
    # Its wrapper warns of the search for unused parameters, which is wanted here (see Trainer).
    return {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}


def launch(nproc: int, module: str, arguments: Sequence[str], *, max_restarts: int = 3) -> None:
    """Runs `launch_command` to its end, again where a process dies; what it does then (`num_restarts`) is to go on from
    the last checkpoint.

    A torchrun of its own for each start: processes that one torchrun started again did not find one another in half of
    all cases, and waited for ever.

    Raises:
        TrainingError: what a worker raised (see `final_errors`), or that they died too often.
    """
    command = launch_command(nproc, module, arguments)
    with tempfile.TemporaryDirectory() as folder:
        verdict = Path(folder) / "verdict"
        environment = {**launch_environment(nproc), _VERDICT_PATH: str(verdict)}
        for restart in range(max_restarts + 1):
            status = subprocess.run(command, env={**environment, _NUM_RESTARTS: str(restart)}, check=False).returncode
            if verdict.exists():
                raise TrainingError(verdict.read_text(encoding="utf-8"))
            if not status:
                return
        raise TrainingError(
            f"the {nproc} training processes ended with status {status}, their messages stand above; "
            "what was saved is whole: resume it"
        )


@contextmanager
def final_errors() -> Iterator[None]:
    """Around the work of a launched process: an error raised on purpose ends all processes for good.

    `launch` starts its processes again after any failure; one that would only come again (wrong options, a loss that
    is no number) is written down for `launch` instead, and the process ends as if all were well.
    """
    path = os.environ.get(_VERDICT_PATH)
    if path is None:
        yield
        return
    verdict = Path(path)
    if verdict.exists():
        raise SystemExit(0)
    try:
        yield
    except RecurraError as exc:
        verdict.write_text(str(exc), encoding="utf-8")
        raise SystemExit(0) from None
    except RuntimeError:
        if verdict.exists():  # a peer gave up, and this process lost its connection to it
            raise SystemExit(0) from None
        raise


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def num_restarts() -> int:
    """How often `launch` has started these processes again."""
    return int(os.environ.get(_NUM_RESTARTS, "0"))


class Group:
    """The processes of one run, as torchrun's environment describes them.

    Attributes:
        rank: of this process, from 0; rank 0 writes files and speaks to people.
        size: number of processes.
        local_rank: among those on this machine; which GPU is whose.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if torch.cuda.is_available() and self.size > 1:
            torch.cuda.set_device(self.local_rank)
        if self.size > 1 and not dist.is_initialized():
            # A killed torchrun would leave its workers behind, and they would hold on to the run's folder.
            die_with_parent(signal.SIGKILL)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=_JOIN_TIMEOUT)
            dist.distributed_c10d._set_pg_timeout(_TIMEOUT)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait_for_all(self) -> None:
        """Returns when every process has come here."""
        if self.size > 1:
            self.sums(0.0)  # a sum and no barrier: NCCL's would want a GPU

    def sums(self, *values: float) -> list[float]:
        """Each value summed over all processes, the same on all of them."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def from_main(self, *values: float) -> list[float]:
        """Rank 0's values, on all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(tensor, src=0)
        return [float(value) for value in tensor]
