"""The process that does a stage of a job: `python -m service.jobs.trainer FOLDER STAGE`.

It runs at low priority, holds the run's lock as long as it lives, and ends with the service: its standard input is a
pipe that closes when the service does, however that ends. It then saves its state, or is gone after 10 seconds.

    exit status 0    the stage is done
    3                it cannot be done; failure.json has the cause
    74               not even that could be written: the disk is full
    75               asked to stop; the state is saved
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

from model.errors import Cancelled
from model.parent import die_with_parent
from service.jobs.failures import ProcessesEnded, failure_of
from service.jobs.run import RunFolder
from service.settings import Settings, load_settings

EXIT_FAILED = 3
EXIT_DISK_FULL = 74
EXIT_STOPPED = 75
GRACE_SECONDS = 10.0


class Watch:
    """Knows whether this process has been asked to stop: by SIGTERM, or because the service is gone.

    A plain flag, no threading.Event: when a service of many threads is killed, the signal comes again for each of
    them, and a handler that is interrupted by itself inside a lock never ends.
    """

    def __init__(self) -> None:
        self._is_stopping = False
        signal.signal(signal.SIGTERM, self._asked)
        die_with_parent(signal.SIGTERM)  # Linux only; the pipe tells the same everywhere
        threading.Thread(target=self._wait_for_the_end, name="service-watch", daemon=True).start()

    def is_stopping(self) -> bool:
        return self._is_stopping

    def pause(self) -> None:
        """Waits a moment. Raises Cancelled."""
        time.sleep(0.1)
        if self._is_stopping:
            raise Cancelled("asked to stop while another process still worked on this run")

    def _asked(self, _: int, __: FrameType | None) -> None:
        self._is_stopping = True

    def _wait_for_the_end(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        self._is_stopping = True
        time.sleep(GRACE_SECONDS)
        os._exit(EXIT_STOPPED)  # whatever holds it up, nothing may outlive the service


def lower_priority(settings: Settings) -> None:
    """Only ever lower: a service that runs at nice 15 does not get a trainer at nice 10.

    Nice alone still lets training end its time slice before a request that has just come in; the idle class does not.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(settings.training_nice, os.getpriority(os.PRIO_PROCESS, 0)))
    policy = getattr(os, f"SCHED_{settings.training_scheduler.upper()}", None)  # Linux's
    if policy is not None and os.sched_getscheduler(0) == os.SCHED_OTHER:
        os.sched_setscheduler(0, policy, os.sched_param(0))


def main() -> None:
    folder, stage = Path(sys.argv[1]), sys.argv[2]
    settings = load_settings()
    lower_priority(settings)
    watch = Watch()
    run = RunFolder(folder)
    try:
        with run.locked(watch.pause):
            run.tell("process", stage=stage, pid=os.getpid())
            _work(run, stage, settings, watch)
    except Cancelled:
        status = EXIT_STOPPED
    except ProcessesEnded as exc:
        status = exc.status
    except BaseException as exc:  # the job boundary: whatever it was, the job has to say it
        traceback.print_exc()
        status = report(run, exc)
    else:
        status = 0
    sys.stderr.flush()
    os._exit(status)  # torch's own end takes a second, and nothing is left to write


def _work(run: RunFolder, stage: str, settings: Settings, watch: Watch) -> None:
    """One stage; torch comes under the lock, so that a process that waits stays small."""
    from service.jobs import preparation

    work = preparation.Work(run=run, spec=run.spec(), settings=settings, should_stop=watch.is_stopping)
    work.check_stop()
    if stage in preparation.STAGES:
        preparation.STAGES[stage](work)
        return
    if stage == "train" and work.spec.num_processes > 1:
        from service.jobs import together

        together.train(work)
        return
    import torch

    from service.jobs import stages

    torch.set_num_threads(work.spec.num_threads)
    stages.STAGES[stage](work)


def report(run: RunFolder, exc: BaseException) -> int:
    try:
        run.fail(failure_of(exc))
    except OSError:
        return EXIT_DISK_FULL
    return EXIT_FAILED


if __name__ == "__main__":
    main()
