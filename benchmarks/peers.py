"""OpenNMT-py decoding a file, in its own environment: a folder with `venv`, `models` and `data` in its pieces."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# Run by the folder's Python; prints seconds a run, of runs that begin after a first one that does not count.
_PROGRAM = """
import logging, sys, time
import torch
from onmt.inference_engine import InferenceEnginePY
from onmt.opts import translate_opts
from onmt.utils.parse import ArgumentParser

model, source, beam, batch, runs, threads = sys.argv[1:3] + [int(x) for x in sys.argv[3:]]
torch.set_num_threads(threads)
parser = ArgumentParser()
translate_opts(parser)
options = parser.parse_args(["-model", model, "-src", source, "-output", "/dev/null", "-beam_size", str(beam),
                             "-batch_size", str(batch), "-batch_type", "sents", "-gpu", "-1", "-max_length", "100"])
for check in ("validate_translate_opts", "_get_all_transform_translate", "_validate_transforms_opts",
              "validate_translate_opts_dynamic"):
    getattr(ArgumentParser, check)(options)
engine = InferenceEnginePY(options)
engine.logger.setLevel(logging.ERROR)
lines = open(source, encoding="utf-8").read().split("\\n")[:-1]
if batch == 1:
    lines = lines[: len(lines) // 10]
with torch.no_grad():
    engine.infer_list(lines[: max(20, batch)])
    for _ in range(runs):
        started = time.perf_counter()
        engine.infer_list(lines)
        print("seconds", (time.perf_counter() - started) / len(lines), flush=True)
"""


def opennmt_rate(folder: Path, *, beam: int, batch: int, runs: int) -> float:
    """Sentences a second of the newest model in `folder` over its test set, the median of so many runs."""
    threads = os.cpu_count() or 1
    model = max((folder / "models").glob("*.pt"), key=lambda path: path.stat().st_mtime)
    source = next((folder / "data").glob("test*.sp.en"))
    command = [str((folder / "venv/bin/python").absolute()), "-W", "ignore", "-c", _PROGRAM]
    command += [str(model.absolute()), str(source.absolute()), str(beam), str(batch), str(runs), str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    seconds = sorted(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("seconds"))
    return 1 / seconds[len(seconds) // 2]
