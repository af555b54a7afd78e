"""From a trained checkpoint to answers over HTTP, and the commands a person types."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model import Translator
from service.app import create_app
from service.settings import Settings

RECURRA = [sys.executable, "-c", "from service.cli import main; main()"]
TEXTS = ["I am cold.", "She sleeps.", "Where is the cat?", "", "We eat bread.\nHe drinks water. I know it.", "No!"]


@pytest.fixture(scope="module")
def client(tiny_checkpoint: Path, listen: Any) -> Iterator[httpx.Client]:
    settings = Settings(checkpoints=tiny_checkpoint.parent, device="cpu", precision="fp32", num_threads=1)
    with listen(create_app(settings)) as client:
        yield client


def translate(client: httpx.Client, text: str | list[str], **options: object) -> list[str]:
    answer = client.post("/translate", json={"text": text, **options})
    assert answer.status_code == 200, answer.text
    return [translation["text"] for translation in answer.json()["translations"]]


@pytest.mark.parametrize("k", [1, 5])
def test_a_thousand_texts_in_lists_of_a_hundred_are_answered_as_one_by_one(client: httpx.Client, k: int) -> None:
    texts = [TEXTS[i % len(TEXTS)] for i in range(1000)]
    alone = {text: translate(client, text, k=k, max_length=12)[0] for text in TEXTS}
    for start in range(0, 1000, 100):
        part = texts[start : start + 100]
        assert translate(client, part, k=k, max_length=12) == [alone[text] for text in part]


def test_the_service_answers_what_the_package_answers(client: httpx.Client, tiny_checkpoint: Path) -> None:
    translator = Translator.load(tiny_checkpoint, device="cpu", precision="fp32")
    assert translate(client, TEXTS) == [t.text for t in translator.translate(TEXTS)]


@pytest.mark.parametrize(
    "body",
    [r'{"text": "\ud83d"}', r'{"text": "a\u0000b\u0007"}', '{"text": "🙂"}'],
)
def test_strange_characters_never_break_the_service(client: httpx.Client, body: str) -> None:
    answer = client.post("/translate", content=body.encode(), headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text


def test_a_prefix_that_cannot_be_written_is_refused_by_name(client: httpx.Client) -> None:
    body = rb'{"text": "Hi.", "prefix": "\ud800"}'
    answer = client.post("/translate", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "prefix"


def test_scoring_sources_translates_them_first(client: httpx.Client) -> None:
    references = [["J'ai froid."], ["Elle dort."]]
    answer = client.post("/score", json={"sources": TEXTS[:2], "references": references, "metrics": ["bleu", "chrf"]})
    assert answer.status_code == 200
    assert answer.json()["hypotheses"] == translate(client, TEXTS[:2])
    assert set(answer.json()["scores"]) == {"bleu", "chrf"}


def test_metrics_count_what_was_translated(client: httpx.Client) -> None:
    translate(client, "I am cold.")
    exposition = client.get("/metrics").text
    assert 'recurra_requests_total{outcome="ok",route="/translate"}' in exposition
    assert 'recurra_source_tokens_total{model="en-fr"}' in exposition
    assert "cold" not in exposition


def run(arguments: list[str], checkpoints: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "RECURRA_CHECKPOINTS": str(checkpoints), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    return subprocess.run(
        [*RECURRA, *arguments], input=stdin, capture_output=True, env=environment, cwd=root, check=False
    )


def test_translate_command_gives_a_line_for_each_line_in_order(tiny_checkpoint: Path) -> None:
    lines = ["I am cold.", "", "She sleeps.", "No! We eat.", ""]
    done = run(["translate", "--k", "2"], tiny_checkpoint.parent, "\n".join(lines).encode() + b"\n")
    assert done.returncode == 0, done.stderr
    translated = done.stdout.decode().split("\n")[:-1]
    expected = Translator.load(tiny_checkpoint, device="cpu").translate(lines, k=2)
    assert translated == [t.text for t in expected]


def test_translate_command_names_the_line_that_is_not_utf8(tiny_checkpoint: Path) -> None:
    done = run(["translate"], tiny_checkpoint.parent, b"Hello.\ncaf\xe9\n")
    assert done.returncode == 1
    assert b"line 2" in done.stderr
    assert b"Traceback" not in done.stderr


def test_models_command_lists_and_verifies(tiny_checkpoint: Path) -> None:
    assert b"en-fr" in run(["models", "list"], tiny_checkpoint.parent).stdout
    assert b"sound" in run(["models", "verify", "en-fr"], tiny_checkpoint.parent).stdout


def test_a_wrong_setting_is_one_line_that_names_it(tiny_checkpoint: Path) -> None:
    done = run(["serve", "--port", "70000"], tiny_checkpoint.parent)
    assert done.returncode == 2
    assert b"RECURRA_PORT" in done.stderr
    assert done.stderr.count(b"\n") == 1
