"""Training jobs under `kill -9`: of the trainer and of the service, at random moments.

    python -m benchmarks.kills tests/data/tiny.en-fr.tsv --kills 30

Trains a model undisturbed, then the same one again and again under kills, and compares the weights byte for byte. Exit
status 1 where a job did not succeed, or came to other weights.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.service_process import ServiceProcess, wait_for

_KILLS_A_JOB = 5


def job_body(model: str, *, max_epochs: int) -> dict[str, Any]:
    """A network that trains in seconds, and saves its state several times in them."""
    options = {"embedding_dim": 24, "readout_dim": 24, "encoder_dim": 20, "decoder_dim": 28, "vocab_size": 160}
    training = {"batch_tokens": 128, "warmup_steps": 5, "learning_rate": 0.01, "precision": "fp32", "patience": 0}
    return {
        "model": model,
        "dataset": "tiny",
        "preset": "small",
        "overrides": {**options, **training, "checkpoint_minutes": 0.01, "log_every_seconds": 0.2},
        "dev": 0.1,
        "test": 0.1,
        "max_epochs": max_epochs,
        "promote": "always",
    }


def upload(service: ServiceProcess, pairs: Path) -> None:
    with pairs.open("rb") as stream:
        fields = {"name": "tiny", "source": "en", "target": "fr"}
        answer = service.client.post("/datasets", data=fields, files={"pairs": stream})
    assert answer.status_code == 201, answer.text


class Killer:
    """Kills what works for one job, and starts the service again."""

    def __init__(self, service: ServiceProcess, chance: random.Random) -> None:
        self._service = service
        self._chance = chance
        self.kills: Counter[tuple[str, str]] = Counter()

    def disturb(self, job_id: str, num_kills: int, seconds: float) -> None:
        """So many kills, each at a random moment within `seconds` after the trainer was last seen to begin."""
        for _ in range(num_kills):
            num_begun = len(self._service.events(job_id, "process"))
            time.sleep(self._chance.uniform(0, seconds))
            if self._chance.random() < 0.5:
                self._kill_service(job_id)
            else:
                self._kill_trainer(job_id)
            wait_for(lambda begun=num_begun: self._goes_on(job_id, begun), "new start after a kill")
            if self._has_ended(job_id):
                return

    def _kill_trainer(self, job_id: str) -> None:
        stage = self._stage(job_id)
        if self._service.kill_trainer(job_id):
            self.kills["trainer", stage] += 1

    def _kill_service(self, job_id: str) -> None:
        trainer, stage = self._service.trainer(job_id), self._stage(job_id)
        self._service.kill()
        self.kills["service", stage] += 1
        if trainer is not None:
            wait_for(lambda: self._service.trainer(job_id) is None, "end of the orphaned trainer")
        self._service.start()

    def _stage(self, job_id: str) -> str:
        stages = self._service.events(job_id, "stage")
        return str(stages[-1]["stage"]) if stages else "queue"

    def _goes_on(self, job_id: str, num_begun: int) -> bool:
        return len(self._service.events(job_id, "process")) > num_begun or self._has_ended(job_id)

    def _has_ended(self, job_id: str) -> bool:
        return self._service.job(job_id)["state"] not in ("queued", "running")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="training pairs, TSV")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        ServiceProcess(Path(folder), training_nice=0, training_scheduler="other") as service,
    ):
        upload(service, arguments.pairs)
        started = time.monotonic()
        job = service.wait_until_ended(service.submit(job_body("undisturbed", max_epochs=arguments.epochs)))
        seconds = time.monotonic() - started
        expected = service.weights("undisturbed", job["version"])
        print(f"undisturbed: {job['state']} after {seconds:.0f} s, version {job['version']}", flush=True)
        sys.exit(_kill_again_and_again(service, arguments, expected, seconds))


def _kill_again_and_again(
    service: ServiceProcess, arguments: argparse.Namespace, expected: bytes, seconds: float
) -> int:
    killer, num_wrong, number = Killer(service, random.Random(arguments.seed)), 0, 0
    while (left := arguments.kills - killer.kills.total()) > 0:
        number += 1
        before = killer.kills.total()
        job_id = service.submit(job_body(f"killed-{number}", max_epochs=arguments.epochs))
        killer.disturb(job_id, min(left, _KILLS_A_JOB), seconds / 3)
        job = service.wait_until_ended(job_id)
        is_same = job["state"] == "succeeded" and service.weights(job["model"], job["version"]) == expected
        num_wrong += not is_same
        weights = "same weights" if is_same else f"OTHER WEIGHTS, {job['failure']}"
        print(f"job {number}: {killer.kills.total() - before} kills, {job['state']}, {weights}", flush=True)
    for (what, stage), count in sorted(killer.kills.items()):
        print(f"kill -9 of the {what} in {stage}: {count}")
    print(f"{killer.kills.total()} kills over {number} jobs: {number - num_wrong} ended as an undisturbed one")
    return 1 if num_wrong else 0


if __name__ == "__main__":
    main()
