"""Work that is handed to a process of its own, as JSON in and JSON out, and killed when its time is up."""

from __future__ import annotations

import asyncio
import sys

from model.errors import RecurraError
from service.errors import EngineFailure
from service.logs import EventLog


async def run_module(module: str, job: bytes, *, max_seconds: float, overdue: RecurraError, log: EventLog) -> bytes:
    """What `python -m module` answers to the job.

    Raises:
        RecurraError: `overdue`, after so many seconds.
        EngineFailure: the process failed.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # a traceback may hold texts
    )
    try:
        answer, _ = await asyncio.wait_for(process.communicate(job), max_seconds)
    except TimeoutError as exc:
        raise overdue from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        log.warning("process_failed", module=module, exit_code=process.returncode)
        raise EngineFailure(f"the process of {module} failed")
    return answer
