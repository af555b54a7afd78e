"""A job's training in several processes under torchrun: the trainer's side of it, and what each of them runs.

    trainer --- torchrun --- python -m service.jobs.together FOLDER   (rank 0)
                         `-- python -m service.jobs.together FOLDER   (rank 1) ...

The trainer holds the run's lock and waits. It asks the others to stop by a file: signals reach torchrun first, which
gives its workers no time to save. Whoever dies takes all below it along; the trainer then ends too and is started
again, as after any death, from the last saved state.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

from model.errors import Cancelled
from model.parent import die_with_parent
from service.jobs.failures import ProcessesEnded
from service.jobs.preparation import Work
from service.jobs.run import RunFolder
from service.jobs.trainer import EXIT_FAILED, report
from service.settings import load_settings

_LOOK_SECONDS = 0.1
# In which torchrun ends this process, should its error be the death of another.
_PEER_DEATH_SECONDS = 3.0


def _stop_path(run: RunFolder) -> Path:
    return run.path / "stop-training"


def train(work: Work) -> None:
    """Returns when they have written the candidate. Raises Cancelled, ProcessesEnded."""
    from model.distributed import launch_command, launch_environment

    stop = _stop_path(work.run)
    stop.unlink(missing_ok=True)
    command = launch_command(work.spec.num_processes, "service.jobs.together", [str(work.run.path)])
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env=launch_environment(work.spec.num_processes),
        preexec_fn=partial(die_with_parent, signal.SIGKILL),
    )
    try:
        while process.poll() is None:
            if work.should_stop():
                stop.touch()
            time.sleep(_LOOK_SECONDS)
    finally:
        process.kill()
        process.wait()
        stop.unlink(missing_ok=True)
    if work.run.has_failed:
        raise ProcessesEnded(EXIT_FAILED)
    if work.should_stop():
        raise Cancelled("asked to stop while training")
    if process.returncode:
        raise ProcessesEnded(process.returncode if process.returncode > 0 else 1)


def main() -> None:
    """One of the processes."""
    die_with_parent(signal.SIGKILL)
    parent = os.getppid()
    run = RunFolder(Path(sys.argv[1]))
    work = Work(run=run, spec=run.spec(), settings=load_settings(), should_stop=_stop_path(run).exists)
    status = 0
    try:
        import torch

        from service.jobs import stages

        torch.set_num_threads(work.spec.num_threads)
        stages.train(work)
    except Cancelled:
        pass  # the trainer knows
    except BaseException as exc:  # the job boundary, as in the trainer
        traceback.print_exc()
        if isinstance(exc, RuntimeError):
            time.sleep(_PEER_DEATH_SECONDS)
        status = EXIT_FAILED
        if os.getppid() == parent and not run.has_failed:
            status = report(run, exc)
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
