"""From a request's body to a job: every name looked up, every option checked, before anything is started."""

from __future__ import annotations

from typing import Any

from model.config import ModelConfig, TokenizerConfig
from model.errors import InvalidValue
from service.datasets.errors import UnknownDataset
from service.datasets.store import Dataset, DatasetStore
from service.errors import UnknownModel, UnknownVersion
from service.inference.versions import VersionStore, check_name
from service.jobs.schemas import TrainBody
from service.jobs.spec import MIN_PAIRS, DataPart, HeldOut, JobSpec, default_share
from service.settings import Settings

_OWN_FIELDS = ("max_minutes", "max_epochs", "seed")
_MAX_OPTION_CHARS = 64
_LOG_SECONDS = 2.0  # between two reports of a job's progress, where the caller sets nothing else


def job_spec(body: TrainBody, settings: Settings, datasets: DatasetStore, versions: VersionStore) -> JobSpec:
    """The job that a body asks for.

    Raises:
        InvalidValue: a field has a value that is not allowed.
        UnknownDataset, UnknownModel, UnknownVersion: it names one that there is not.
    """
    check_name(body.model)
    chosen = _datasets(body, datasets)
    src_lang, tgt_lang = _languages(body, chosen)
    num_pairs = sum(dataset.num_pairs for dataset in chosen)
    if num_pairs < MIN_PAIRS:
        field = "dataset" if body.dataset is not None else "datasets"
        raise InvalidValue(field, num_pairs, f"at least {MIN_PAIRS} sentence pairs")
    spec = JobSpec(
        model=body.model,
        datasets=tuple(_part(dataset) for dataset in chosen),
        src_lang=src_lang,
        tgt_lang=tgt_lang,
        preset=body.preset,
        options=_options(body),
        dev=_held_out("dev", body.dev, num_pairs, datasets, {src_lang, tgt_lang}),
        test=_held_out("test", body.test, num_pairs, datasets, {src_lang, tgt_lang}),
        start_from=_start_from(body, versions),
        promote=body.promote,
        num_threads=settings.training_threads,
        num_processes=settings.training_processes,
    )
    _check_options(spec)
    if not spec.dev.share and not spec.dev.datasets:
        raise InvalidValue("dev", body.dev, "a share above 0, or a dataset: training stops by what it measures there")
    return spec


def _datasets(body: TrainBody, datasets: DatasetStore) -> list[Dataset]:
    if (body.dataset is None) == (body.datasets is None):
        raise InvalidValue("dataset", body.dataset, "a dataset's name, or several as datasets: one of the two fields")
    names = body.datasets or [str(body.dataset)]
    if len(set(names)) < len(names):
        raise InvalidValue("datasets", names, "each name once")
    field = "datasets" if body.datasets else "dataset"
    return [_dataset(field, name, datasets) for name in names]


def _dataset(field: str, name: str, datasets: DatasetStore) -> Dataset:
    """Errors name the field that the dataset's name stands in."""
    try:
        return datasets.get(name)
    except InvalidValue as exc:
        raise InvalidValue(field, exc.value, exc.allowed) from exc
    except UnknownDataset as exc:
        raise UnknownDataset(str(exc), field=field, value=name, allowed=getattr(exc, "allowed", "")) from exc


def _languages(body: TrainBody, chosen: list[Dataset]) -> tuple[str, str]:
    """The direction asked for, which every dataset must have, forwards or backwards."""
    first = chosen[0]
    src_lang = body.source or (first.src_lang if body.target != first.src_lang else first.tgt_lang)
    tgt_lang = body.target or (first.tgt_lang if src_lang != first.tgt_lang else first.src_lang)
    for dataset in chosen:
        languages = (dataset.src_lang, dataset.tgt_lang)
        if src_lang not in languages:
            raise InvalidValue("source", src_lang, f"{' or '.join(languages)}, a language of {dataset.name}")
        if tgt_lang not in languages or tgt_lang == src_lang:
            raise InvalidValue("target", tgt_lang, f"the other language of {dataset.name}: {' or '.join(languages)}")
    return src_lang, tgt_lang


def _part(dataset: Dataset) -> DataPart:
    return DataPart(name=dataset.name, sha256=dataset.sha256)


def _held_out(
    field: str, value: float | str | list[str] | None, num_pairs: int, datasets: DatasetStore, languages: set[str]
) -> HeldOut:
    if value is None:
        return HeldOut(share=default_share(num_pairs))
    if isinstance(value, float | int):
        return HeldOut(share=float(value))
    chosen = [_dataset(field, name, datasets) for name in ([value] if isinstance(value, str) else value)]
    for dataset in chosen:
        if {dataset.src_lang, dataset.tgt_lang} != languages:
            raise InvalidValue(field, dataset.name, f"a dataset of {' and '.join(sorted(languages))}")
    return HeldOut(datasets=tuple(_part(dataset) for dataset in chosen))


def _options(body: TrainBody) -> dict[str, Any]:
    options: dict[str, Any] = {"log_every_seconds": _LOG_SECONDS}
    for name, value in body.overrides.items():
        if len(name) > _MAX_OPTION_CHARS:
            raise InvalidValue("overrides", name, "names of options")
        if name in _OWN_FIELDS:
            raise InvalidValue(f"overrides.{name}", value, f"nothing: give it as the field {name}")
        if not isinstance(value, bool | int | float | str) or len(str(value)) > _MAX_OPTION_CHARS:
            raise InvalidValue(f"overrides.{name}", value, "a number, a short text, true or false")
        options[name] = value
    return options | {name: getattr(body, name) for name in _OWN_FIELDS if getattr(body, name) is not None}


def _start_from(body: TrainBody, versions: VersionStore) -> str | None:
    """With its version, so that a promotion in the meantime changes nothing."""
    if body.start_from is None:
        return None
    for name in body.overrides:
        if name in {*ModelConfig.__dataclass_fields__, *TokenizerConfig.__dataclass_fields__}:
            allowed = "an option of training: network and tokenizer are those of start_from"
            raise InvalidValue(f"overrides.{name}", body.overrides[name], allowed)
    model, _, version = body.start_from.partition("@")
    try:
        chosen = version or versions.live(model)
        if chosen is None:
            raise UnknownVersion(model, "live", [info.version for info in versions.versions(model)])
        versions.folder(model, chosen)
    except (UnknownModel, UnknownVersion) as exc:
        exc.field = "start_from"
        raise
    return f"{model}@{chosen}"


def _check_options(spec: JobSpec) -> None:
    try:
        spec.full_preset()
    except InvalidValue as exc:
        if exc.field in spec.options and exc.field not in _OWN_FIELDS:
            raise InvalidValue(f"overrides.{exc.field}", exc.value, exc.allowed) from exc
        raise
    if spec.dev.share + spec.test.share > 0.5:
        raise InvalidValue("dev", spec.dev.share, f"0.5 at most together with test ({spec.test.share:g})")
