"""Two processes behind one port, as one service: `RECURRA_PROCESSES`."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.kills import upload
from benchmarks.service_process import ServiceProcess, wait_for

TINY = Path(__file__).parents[1] / "data" / "tiny.en-fr.tsv"


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return sorted(map(int, listed.stdout.split()))


def processes_in_metrics(service: ServiceProcess) -> set[str]:
    text = httpx.get(f"http://127.0.0.1:{service.port}/metrics").text
    families = text_string_to_metric_families(text)
    return {sample.labels["process"] for family in families for sample in family.samples}


def test_processes_answer_as_one_outlive_a_death_and_drain_together(tmp_path: Path) -> None:
    with ServiceProcess(tmp_path, processes=2) as service:
        assert service.process is not None
        wait_for(lambda: processes_in_metrics(service) == {"0", "1"}, "answer from both processes")
        upload(service, TINY)
        for _ in range(8):  # whoever takes the connection
            answer = httpx.get(f"http://127.0.0.1:{service.port}/datasets")
            assert len(answer.json()["datasets"]) == 1
        before = children(service.process.pid)
        os.kill(before[1], signal.SIGKILL)
        wait_for(lambda: len(set(children(service.process.pid)) - set(before)) == 1, "new process")
        wait_for(lambda: processes_in_metrics(service) == {"0", "1"}, "answer from the new process")
        service.process.terminate()
        assert service.process.wait(60) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in before)
