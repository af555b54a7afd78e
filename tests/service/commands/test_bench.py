"""`recurra bench`, called in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from model.errors import DataError, InvalidValue
from service.cli import app

COMMON = ("--precision", "fp32", "--max-length", "4", "--max-nodes", "300")


@pytest.fixture
def bench(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`bench(…)`: what `recurra bench search-errors …` prints."""
    monkeypatch.setenv("RECURRA_CHECKPOINTS", str(models_folder))

    def run(*arguments: str | Path) -> str:
        result = CliRunner().invoke(app, ["bench", "search-errors", *map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "sentences"
    path.write_text("I am cold.\nTom runs. We won!\n\nYou are late.\n")
    return path


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    path.write_text('{"en": "I am cold.", "fr": ["J\'ai froid."]}\n{"en": "Go on.", "fr": ["Continue.", "Vas-y."]}\n')
    return path


def test_a_table_for_each_length_penalty(bench: Any, sentences: Path) -> None:
    lines = bench(sentences, *COMMON, "--k", "1,3").splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("greedy ", "beam ", "exact "))].count("exact") == 2
    assert sum("fp32, length penalty" in line and "4 sentences" in line for line in lines) == 2
    assert sum(line.startswith("beam 3") for line in lines) == 2


def test_json_holds_all_numbers_and_bleu_where_there_are_references(bench: Any, examples: Path) -> None:
    found = json.loads(bench(examples, *COMMON, "--length-penalty", "0", "--json"))
    (report,) = found["reports"]
    assert report["num_sentences"] == 2
    assert report["num_proven"] + report["num_given_up"] + report["num_out_of_time"] == 2
    assert [search["name"] for search in report["searches"]] == ["greedy", "beam 2", "beam 5", "exact"]
    assert all(search["bleu"] is not None for search in report["searches"])


def test_references_may_stand_in_files_of_their_own(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "src").write_text("I am cold.\nGo on.\n")
    (tmp_path / "ref").write_text("J'ai froid.\nContinue.\n")
    found = json.loads(bench(tmp_path / "src", tmp_path / "ref", *COMMON, "--k", "1", "--sentences", "1", "--json"))
    assert found["reports"][0]["num_sentences"] == 1
    assert found["reports"][0]["searches"][0]["bleu"] is not None
    (tmp_path / "ref").write_text("J'ai froid.\n")
    with pytest.raises(DataError, match="not aligned"):
        bench(tmp_path / "src", tmp_path / "ref", *COMMON)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "1,x"], "--k is '1,x'; allowed is whole numbers, separated by commas"),
        (["--k", "2,2"], "each once"),
        (["--k", "0"], "k is 0"),
        (["--length-penalty", "0,-1"], "length_penalty is -1"),
        (["--max-nodes", "0"], "max_nodes is 0"),
        (["--max-seconds", "0"], "--max-seconds is 0"),
        (["--sentences", "-1"], "--sentences is -1"),
    ],
)
def test_a_wrong_option_is_named_before_a_model_is_loaded(
    bench: Any, sentences: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        bench(sentences, "--model", "there is none", *arguments)
    assert message in str(caught.value)


def test_a_file_without_a_sentence_is_refused(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(InvalidValue, match="at least one sentence"):
        bench(tmp_path / "empty", *COMMON)
