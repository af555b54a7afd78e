"""The command line, called in this process; what needs a process of its own is in tests/end_to_end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from model.bleu import score
from model.errors import DataError, InvalidValue
from model.translator import Translator
from service.cli import app


@pytest.fixture
def recurra(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`recurra("translate", …, stdin=b"…")`: exit status 0 or its error raised; what it printed."""
    monkeypatch.setenv("RECURRA_CHECKPOINTS", str(models_folder))

    def run(*arguments: str | Path, stdin: bytes = b"", exit_code: int = 0) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == exit_code, result.output
        return result.stdout_bytes.decode()

    return run


@pytest.fixture
def translator(models_folder: Path) -> Translator:
    return Translator.load(models_folder / "en-fr", precision="fp32")


FP32 = ("--precision", "fp32")


@pytest.mark.parametrize("batch", ["1", "2", "512"])
def test_translate_gives_a_line_for_each_line_whatever_the_batch(
    recurra: Any, translator: Translator, batch: str
) -> None:
    lines = ["I am cold.", "", "Tom runs. We won!", "  ", "last"]
    out = recurra("translate", *FP32, "--batch", batch, stdin="\n".join(lines).encode())
    assert out == "".join(translation.text + "\n" for translation in translator.translate(lines))


def test_translate_reads_a_file_with_any_line_ends_and_a_bom(recurra: Any, tmp_path: Path) -> None:
    plain, dos = tmp_path / "plain", tmp_path / "dos"
    plain.write_bytes(b"I am cold.\nGo on.\n")
    dos.write_bytes(b"\xef\xbb\xbfI am cold.\r\nGo on.\r\n")
    assert recurra("translate", plain, *FP32) == recurra("translate", dos, *FP32)


def test_a_line_separator_of_unicode_does_not_add_a_line(recurra: Any) -> None:
    assert recurra("translate", *FP32, stdin="a\u2028b\nc\x85d\ne\x0cf\n".encode()).count("\n") == 3


def test_translate_gives_n_best_on_a_line_or_as_json(recurra: Any, translator: Translator) -> None:
    expected = translator.translate("I am cold.", k=4, n_best=3)
    options = ("--k", "4", "--n-best", "3", *FP32)
    assert recurra("translate", *options, stdin=b"I am cold.").count("\t") == 2
    found = json.loads(recurra("translate", *options, "--json", stdin=b"I am cold."))
    assert found["text"] == expected.text
    assert [other["text"] for other in found["alternatives"]] == [other.text for other in expected.alternatives]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "0"], "k is 0"),
        (["--search", "x"], "greedy, beam"),
        (["--search", "greedy", "--k", "3"], "k is 3"),
        (["--n-best", "9"], "n_best is 9"),
        (["--model", "xx"], "--model is 'xx'"),
        (["--device", "tpu"], "device is 'tpu'"),
    ],
)
def test_a_wrong_option_is_named(recurra: Any, arguments: list[str], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        recurra("translate", *arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a\nb\n\xff\n", "line 3: not UTF-8: byte 0xff at column 1"), (b"a" * 1_000_001, "line 1: the line is longer")],
)
def test_a_line_that_cannot_be_read_is_named(recurra: Any, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        recurra("translate", path)


def test_a_missing_file_is_named(recurra: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        recurra("translate", tmp_path / "missing")


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    contents = {"hyp": "a b c d\ne f\n", "ref": "a b c d\ne g\n", "other": "x\ne f\n", "short": "a\n"}
    paths = {name: tmp_path / name for name in contents}
    for name, content in contents.items():
        paths[name].write_text(content)
    return paths


def test_score_takes_several_references(recurra: Any, texts: dict[str, Path]) -> None:
    one = json.loads(recurra("score", texts["hyp"], texts["ref"], "--json"))
    two = json.loads(recurra("score", texts["hyp"], texts["ref"], texts["other"], "--json"))
    assert list(one) == ["bleu", "chrf"]
    assert one["bleu"]["score"] < two["bleu"]["score"]


def test_score_prints_each_metric_with_its_signature(recurra: Any, texts: dict[str, Path]) -> None:
    lines = recurra("score", texts["hyp"], texts["ref"], "--metrics", "bleu,bleu-d2l").splitlines()
    assert [line.split()[0] for line in lines] == ["bleu", "bleu-d2l"]
    assert "version:" in lines[0]


def test_score_translates_a_test_set(recurra: Any, translator: Translator, tmp_path: Path) -> None:
    test_set = tmp_path / "test.jsonl"
    test_set.write_text('{"en": "I am cold.", "fr": ["J\'ai froid.", "J\'ai très froid."]}\n')
    found = json.loads(recurra("score", "--sources", test_set, "--k", "1", *FP32, "--json"))
    assert found["bleu"]["reference_length"] is not None
    sources, refs = tmp_path / "src", tmp_path / "ref"
    sources.write_text("I am cold.\n")
    refs.write_text("J'ai froid.\n")
    assert json.loads(recurra("score", refs, "--sources", sources, "--k", "1", *FP32, "--json"))


def test_score_refuses_what_does_not_go_together(recurra: Any, texts: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="not aligned"):
        recurra("score", texts["hyp"], texts["short"])
    for arguments in (["score", texts["hyp"]], ["score"], ["score", texts["hyp"], texts["ref"], "--model", "en-fr"]):
        with pytest.raises(InvalidValue):
            recurra(*arguments)
    with pytest.raises(InvalidValue, match="meteor"):
        recurra("score", texts["hyp"], texts["ref"], "--metrics", "bleu,meteor")


def test_data_stats_prints_counts_and_writes_histograms(recurra: Any, tmp_path: Path) -> None:
    data = Path(__file__).parents[2] / "data" / "tiny.en-fr.tsv"
    out = recurra("data", "stats", data, "--out", tmp_path / "out")
    assert "120 pairs" in out
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".png"}


def test_models_are_listed_shown_and_verified(recurra: Any) -> None:
    assert "en→fr" in recurra("models", "list")
    assert json.loads(recurra("models", "show"))["source"] == "en"
    assert "en-fr: sound, version" in recurra("models", "verify")


def test_an_altered_checkpoint_is_refused_by_verify(recurra: Any, models_folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(models_folder / "en-fr", tmp_path / "en-fr")
    weights = tmp_path / "en-fr" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    recurra("models", "verify", "--checkpoints", tmp_path, exit_code=1)
    assert "refused: weights.safetensors" in recurra("models", "list", "--checkpoints", tmp_path)


def test_every_search_field_reaches_the_search(recurra: Any, translator: Translator) -> None:
    line = "She is nice and he is tired."
    sampled = ("--search", "sample", "--seed", "3", "--temperature", "0.7", "--top-k", "9", "--top-p", "0.9")
    options = {"search": "sample", "seed": 3, "temperature": 0.7, "top_k": 9, "top_p": 0.9}
    assert (
        recurra("translate", *FP32, *sampled, stdin=line.encode()) == translator.translate(line, **options).text + "\n"
    )
    rules = ("--no-repeat-ngram", "1", "--banned", "est", "--banned", "il", "--coverage-penalty", "0.2")
    options = {"no_repeat_ngram": 1, "banned": ["est", "il"], "coverage_penalty": 0.2}
    assert recurra("translate", *FP32, *rules, stdin=line.encode()) == translator.translate(line, **options).text + "\n"
    found = json.loads(
        recurra("translate", *FP32, "--search", "exact", "--max-nodes", "40", "--json", stdin=line.encode())
    )
    expected = translator.translate(line, search="exact", max_nodes=40)
    assert (found["text"], found["is_optimal"], found["gap"]) == (expected.text, expected.is_optimal, expected.gap)


def test_an_explanation_with_its_tree_is_json(recurra: Any, translator: Translator) -> None:
    found = json.loads(recurra("translate", *FP32, "--json", "--explain", "--tree", stdin=b"I am cold."))
    expected = translator.translate("I am cold.", explain=True, wants_tree=True).explanation
    assert expected is not None
    assert found["explanation"]["target_tokens"] == list(expected.target_tokens)
    assert len(found["explanation"]["tree"]) == len(expected.tree) > 0
    assert "explanation" not in json.loads(recurra("translate", *FP32, "--json", stdin=b"I am cold."))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1"], "seed is 1; allowed is nothing with search = beam: it is an option of search = sample"),
        (["--top-k", "0", "--k", "3"], "top_k is 0; allowed is nothing with search = beam"),
        (["--max-nodes", "9", "--search", "sample"], "max_nodes is 9; allowed is nothing with search = sample"),
        (["--temperature", "0", "--search", "sample"], "temperature is 0"),
        (["--coverage-penalty", "-1"], "coverage_penalty is -1"),
        (["--no-repeat-ngram", "-1"], "no_repeat_ngram is -1"),
        (["--banned", " "], "banned is ' '"),
        (["--explain"], "--explain is True; allowed is given together with --json"),
        (["--tree", "--json"], "--tree is True; allowed is given together with --explain"),
        (["--tree", "--json", "--explain", "--k", "1"], "tree is True; allowed is false with search = greedy"),
    ],
)
def test_a_wrong_search_option_is_named_before_a_model_is_loaded(
    recurra: Any, arguments: list[str], message: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        recurra("translate", "--model", "there is none", *arguments)
    assert message in str(caught.value)


def test_score_takes_the_search_and_refuses_one_without_sources(
    recurra: Any, translator: Translator, tmp_path: Path, texts: dict[str, Path]
) -> None:
    test_set = tmp_path / "test.jsonl"
    test_set.write_text('{"en": "I am cold.", "fr": ["J\'ai froid."]}\n')
    sampled = ("--search", "sample", "--seed", "5", "--min-length", "4")
    found = json.loads(recurra("score", "--sources", test_set, *sampled, *FP32, "--metrics", "chrf", "--json"))
    translation = translator.translate("I am cold.", search="sample", seed=5, min_length=4).text
    assert found["chrf"]["score"] == score([translation], [["J'ai froid."]], metrics=("chrf",))["chrf"].score
    with pytest.raises(InvalidValue, match="--max-length is 3; allowed is given together with --sources"):
        recurra("score", texts["hyp"], texts["ref"], "--max-length", "3")
    with pytest.raises(InvalidValue, match="max_nodes is 3"):
        recurra("score", "--sources", test_set, "--model", "there is none", "--max-nodes", "3")
