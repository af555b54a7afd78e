"""The stages that make a run's data and tokenizer. Each leaves files for the next, and is done again harmlessly.

Runs in the trainer process only. Imports no torch, which takes longer than these stages do on a small dataset.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from model.data.corpus import Example, Pair, read_examples, read_pairs
from model.data.tokenizer import train_tokenizer
from model.errors import Cancelled
from model.files import write_atomically, write_json
from service.datasets.errors import UnknownDataset
from service.datasets.store import DatasetStore
from service.inference.versions import VersionStore
from service.jobs.failures import Failure, JobFailed
from service.jobs.run import RunFolder
from service.jobs.spec import DataPart, HeldOut, JobSpec
from service.jobs.splits import Splits, split
from service.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage is given."""

    run: RunFolder
    spec: JobSpec
    settings: Settings
    should_stop: Callable[[], bool]

    @property
    def versions(self) -> VersionStore:
        return VersionStore(self.settings.checkpoints_path)

    def check_stop(self) -> None:
        if self.should_stop():
            raise Cancelled("the run was asked to stop")


# -- prepare -----------------------------------------------------------------------------------------------------------


def prepare(work: Work) -> None:
    """Reads the datasets and writes train, dev and test; data.json comes last and says that all is there."""
    report_path = work.run.data / "data.json"
    if report_path.exists():
        return
    spec = work.spec
    splits = split(
        _pairs_of(work, spec.datasets),
        dev_share=spec.dev.share,
        test_share=spec.test.share,
        dev=_pairs_of(work, spec.dev.datasets),
        test=_pairs_of(work, spec.test.datasets),
    )
    _check_splits(splits, spec.test)
    work.run.data.mkdir(exist_ok=True)
    lines = "".join(f"{pair.src}\t{pair.tgt}\n" for pair in splits.train)
    write_atomically(work.run.data / "train.tsv", lines.encode())
    for name, examples in (("dev", splits.dev), ("test", splits.test)):
        rows = ({spec.src_lang: example.src, spec.tgt_lang: example.refs} for example in examples)
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(work.run.data / f"{name}.jsonl", content.encode())
    report = {
        "num_train": len(splits.train),
        "num_dev": len(splits.dev),
        "num_test": len(splits.test),
        "num_dropped": splits.num_dropped,
    }
    write_json(report_path, report)
    work.run.tell("data", **report)


def _pairs_of(work: Work, parts: Sequence[DataPart]) -> Iterator[Pair]:
    """The pairs of datasets in the job's direction."""
    store = DatasetStore(work.settings.datasets_path)
    for part in parts:
        work.check_stop()
        try:
            dataset = store.get(part.name)
        except UnknownDataset as exc:
            raise JobFailed(Failure(code="dataset_gone", detail=f"there is no dataset {part.name} any more")) from exc
        if dataset.sha256 != part.sha256:
            detail = f"the dataset {part.name} is not the one that the job was submitted with"
            raise JobFailed(Failure(code="dataset_changed", detail=detail))
        if dataset.src_lang == work.spec.src_lang:
            yield from dataset.pairs()
        else:
            yield from (Pair(pair.tgt, pair.src) for pair in dataset.pairs())


def _check_splits(splits: Splits, test: HeldOut) -> None:
    wants_test = bool(test.share or test.datasets)
    if len(splits.train) < 2 or not splits.dev or (wants_test and not splits.test):
        detail = (
            f"{len(splits.train)} training pairs, {len(splits.dev)} dev and {len(splits.test)} test sentences are left "
            f"after {splits.num_dropped} pairs that share a sentence with dev or test were dropped"
        )
        raise JobFailed(Failure(code="too_little_data", detail=detail))


def train_pairs(work: Work) -> list[Pair]:
    return list(read_pairs(work.run.data / "train.tsv"))


def read_set(work: Work, name: str) -> list[Example]:
    path = work.run.data / f"{name}.jsonl"
    if not path.stat().st_size:
        return []
    return read_examples(path, src_lang=work.spec.src_lang, tgt_lang=work.spec.tgt_lang)


# -- tokenizer ---------------------------------------------------------------------------------------------------------


def learn_tokenizer(work: Work) -> None:
    """Learns the tokenizers where training looks for them; a run that starts from a model has its model's."""
    if work.spec.start_from:
        return
    options = work.spec.full_preset().tokenizer
    pairs = train_pairs(work)
    src, tgt = [pair.src for pair in pairs], [pair.tgt for pair in pairs]
    work.run.train.mkdir(exist_ok=True)
    for prefix, texts in (("", [*src, *tgt]),) if options.shared else (("source.", src), ("target.", tgt)):
        if next(work.run.train.glob(f"{prefix}tokenizer.*"), None):
            continue
        tokenizer = train_tokenizer(
            options.kind,
            texts,
            vocab_size=options.vocab_size,
            min_freq=options.min_frequency,
            model_type=options.model_type,
        )
        tokenizer.save(work.run.train / (prefix + tokenizer.file_name))
        work.run.tell("tokenizer", vocab_size=tokenizer.vocab_size)


STAGES: dict[str, Callable[[Work], None]] = {"prepare": prepare, "tokenizer": learn_tokenizer}
