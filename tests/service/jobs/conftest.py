"""A job's spec, and the project's small pairs as a dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service.datasets.formats import UnpackLimit
from service.datasets.store import Dataset, DatasetStore
from service.datasets.upload import store_files
from service.jobs.spec import DataPart, HeldOut, JobSpec

TINY = Path(__file__).parents[2] / "data" / "tiny.en-fr.tsv"


@pytest.fixture
def spec() -> JobSpec:
    return JobSpec(
        model="en-fr",
        datasets=(DataPart(name="tatoeba", sha256="ab"),),
        src_lang="en",
        tgt_lang="fr",
        preset="small",
        options={"seed": 3},
        dev=HeldOut(share=0.1),
        test=HeldOut(datasets=(DataPart(name="news", sha256="cd"),)),
        start_from=None,
        promote="never",
        num_threads=1,
    )


@pytest.fixture(scope="session")
def add_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Dataset]:
    """`add_dataset(store, name, source, target, lines)`: the tiny pairs, or as many of them."""

    def adding(
        store: DatasetStore, name: str = "tiny", source: str = "en", target: str = "fr", num_pairs: int | None = None
    ) -> Dataset:
        lines = TINY.read_text("utf-8").splitlines()[:num_pairs]
        path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
        path.write_text("\n".join(lines) + "\n", "utf-8")
        fields = {"name": name, "source": source, "target": target}
        return store_files(fields, {"pairs": path}, store, UnpackLimit(max_bytes=10**9))[0]

    return adding
