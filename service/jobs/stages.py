"""The stages that train and score. Both go on from what they left on disk, and are done again harmlessly.

Runs in the trainer process only: this imports torch, and a stage may take hours.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from model.bleu import corpus_bleu
from model.checkpoint import CONFIG_FILE, Checkpoint, load_checkpoint, save_checkpoint
from model.data.corpus import Example
from model.errors import CheckpointError
from model.files import write_json
from model.training import Progress, Trainer
from model.translator import Translator
from service.errors import UnknownModel, UnknownVersion
from service.inference.comparison import compare
from service.jobs.failures import Failure, JobFailed
from service.jobs.preparation import Work, read_set, train_pairs
from service.jobs.run import RunFolder

_TRANSLATED_AT_ONCE = 100  # between two looks at should_stop
_BEAM = 5


# -- train -------------------------------------------------------------------------------------------------------------


def train(work: Work) -> None:
    """Trains to the end of the plan, from the last saved state where there is one, and writes the candidate."""
    if (work.run.candidate / CONFIG_FILE).exists():
        return
    spec = work.spec
    trainer = Trainer(
        work.run.train,
        preset=spec.full_preset(),
        pairs=train_pairs(work),
        dev=read_set(work, "dev"),
        src_lang=spec.src_lang,
        tgt_lang=spec.tgt_lang,
        resume=None,
        start_from=_parent(work),
        device=work.settings.device,
        num_threads=spec.num_threads,
    )
    if trainer.group.is_main:
        work.run.tell("training", num_parameters=trainer.network.num_parameters, step=trainer.step)
    trainer.train(on_progress=lambda progress: _tell_progress(work.run, progress), should_stop=work.should_stop)
    if trainer.group.is_main:
        trainer.finish(work.run.candidate, {"preset": spec.preset, "data": [part.name for part in spec.datasets]})


def _parent(work: Work) -> Checkpoint | None:
    if work.spec.start_from is None:
        return None
    name, _, version = work.spec.start_from.partition("@")
    try:
        return load_checkpoint(work.versions.folder(name, version))
    except (UnknownModel, UnknownVersion) as exc:
        detail = f"there is no {work.spec.start_from} any more, which the run starts from"
        raise JobFailed(Failure(code="model_gone", detail=detail)) from exc


def _tell_progress(run: RunFolder, progress: Progress) -> None:
    values = asdict(progress)
    event = "evaluation" if values.pop("is_evaluation") else "progress"
    run.tell(event, **{name: _finite(value) for name, value in values.items()})


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- evaluate ----------------------------------------------------------------------------------------------------------


def evaluate(work: Work) -> None:
    """Scores the candidate on dev and test, compares it with the live version, and adds it to the model's versions."""
    checkpoint = load_checkpoint(work.run.candidate)
    scores: dict[str, dict[str, float]] = {}
    texts: list[str] = []
    for name in ("dev", "test"):
        examples = read_set(work, name)
        if examples:
            scores[name], texts = _score(work, checkpoint, examples)
            work.run.tell("scores", set=name, **scores[name])
    examples = examples or read_set(work, "dev")
    version = _publish(work, checkpoint, scores)
    evaluation = {"version": version, "scores": scores, **_compare_with_live(work, version, texts, examples)}
    write_json(work.run.evaluation, evaluation)
    work.run.tell("evaluated", **evaluation)


def _score(work: Work, checkpoint: Checkpoint, examples: list[Example]) -> tuple[dict[str, float], list[str]]:
    """BLEU greedy and with a beam, and the beam's translations."""
    translator = Translator(checkpoint, device=_device(work), precision="fp32")
    refs = [list(example.refs) for example in examples]
    greedy = _translate(work, translator, examples, k=1)
    beam = _translate(work, translator, examples, k=_BEAM)
    scores = {"greedy": corpus_bleu(greedy, refs), f"beam {_BEAM}": corpus_bleu(beam, refs)}
    return {"sentences": len(examples), **{name: round(score, 2) for name, score in scores.items()}}, beam


def _device(work: Work) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if work.settings.device == "auto" else work.settings.device


def _translate(work: Work, translator: Translator, examples: list[Example], *, k: int) -> list[str]:
    texts: list[str] = []
    for start in range(0, len(examples), _TRANSLATED_AT_ONCE):
        work.check_stop()
        part = [example.src for example in examples[start : start + _TRANSLATED_AT_ONCE]]
        texts += [translation.text for translation in translator.translate(part, k=k)]
    return texts


def _publish(work: Work, checkpoint: Checkpoint, scores: dict[str, dict[str, float]]) -> str:
    """Adds the checkpoint, scores and all, to the model's versions; it does not go live by that."""
    spec = work.spec
    preset = spec.full_preset()
    test = {name: {"bleu": value} if name != "sentences" else value for name, value in scores.get("test", {}).items()}
    metrics = {**checkpoint.metrics, "test": test} if test else checkpoint.metrics
    folder = work.run.candidate.with_name("version")
    shutil.rmtree(folder, ignore_errors=True)
    save_checkpoint(replace(checkpoint, metrics=metrics), folder)
    lineage = {
        "job": work.run.id,
        "datasets": [asdict(part) for part in spec.datasets],
        "data_sha256": checkpoint.metrics.get("data_sha256"),
        "parent": spec.start_from,
        "seed": preset.training.seed,
        "config": {
            "preset": spec.preset,
            "options": dict(spec.options),
            "model": checkpoint.model.to_json(),
            "tokenizer": preset.tokenizer.to_json(),
            "training": preset.training.to_json(),
        },
        "scores": scores,
    }
    version = work.versions.publish(spec.model, folder, lineage=lineage)
    shutil.rmtree(folder, ignore_errors=True)
    return version


def _compare_with_live(work: Work, version: str, texts: list[str], examples: list[Example]) -> dict[str, Any]:
    """The live version's translations of the same sentences against the candidate's; nothing where none is live."""
    live = _live_version(work)
    if live in (None, version):
        return {"live": live, "comparison": None}
    try:
        parent = load_checkpoint(work.versions.folder(work.spec.model, str(live)))
    except CheckpointError as exc:
        return {"live": live, "comparison": None, "live_refused": str(exc)}
    translator = Translator(parent, device=_device(work), precision="fp32")
    baseline = _translate(work, translator, examples, k=_BEAM)
    result = compare(baseline, texts, [list(example.refs) for example in examples])
    return {"live": live, "comparison": result.to_json()}


def _live_version(work: Work) -> str | None:
    try:
        return work.versions.live(work.spec.model)
    except UnknownModel:
        return None


STAGES: dict[str, Callable[[Work], None]] = {"train": train, "evaluate": evaluate}
