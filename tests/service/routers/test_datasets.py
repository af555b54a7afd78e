"""POST, GET and DELETE of datasets. What is refused of a form and its files is in tests/service/datasets."""

from __future__ import annotations

import gzip
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.schemas_datasets import EXAMPLE, FORM, DatasetAnswer

TSV = b"Go.\tVa !\nI'm cold.\tJ'ai froid.\nGo.\tVa !\n"
FIELDS = {"name": "small", "source": "en", "target": "fr"}
FILE = {"pairs": ("pairs.tsv", TSV)}


@pytest.fixture
def client(serve: Callable[..., Any], tmp_path: Path) -> Iterator[Any]:
    with serve(data=tmp_path / "data") as app_client:
        yield app_client


def test_an_upload_is_answered_with_its_report_and_can_be_looked_up(client: Any) -> None:
    response = client.post("/datasets", data=FIELDS, files=FILE)
    answer = response.json()
    assert (response.status_code, response.headers["location"]) == (201, "/datasets/small")
    assert (answer["name"], answer["source"], answer["target"], answer["num_pairs"]) == ("small", "en", "fr", 2)
    assert answer["report"]["dropped"] == {"empty": 0, "too_long": 0, "ratio": 0, "duplicate": 1}
    assert answer["report"]["examples"]["duplicate"] == [["Go.", "Va !"]]
    assert answer["report"]["statistics"]["src"]["length_counts"] == [[2, 1], [3, 1]]
    assert client.get("/datasets/small").json() == answer
    listed = client.get("/datasets").json()["datasets"]
    assert listed == [{name: answer[name] for name in listed[0]}]


def test_the_same_again_is_200_and_other_content_409(client: Any) -> None:
    first = client.post("/datasets", data=FIELDS, files=FILE).json()
    again = client.post("/datasets", data=FIELDS, files={"pairs": ("x.gz", gzip.compress(TSV))})
    assert (again.status_code, again.json()) == (200, first)
    other = client.post("/datasets", data=FIELDS, files={"pairs": ("x.tsv", b"a\tb\n")})
    assert (other.status_code, other.json()["code"]) == (409, "dataset_exists")
    assert other.json()["errors"][0]["field"] == "name"
    assert client.get("/datasets/small").json() == first


def test_the_same_pairs_under_another_name_are_recognised(client: Any) -> None:
    client.post("/datasets", data=FIELDS, files=FILE)
    second = client.post("/datasets", data=FIELDS | {"name": "other"}, files=FILE)
    assert (second.status_code, second.json()["same_content_as"]) == (201, ["small"])


def test_a_deleted_dataset_is_gone(client: Any) -> None:
    client.post("/datasets", data=FIELDS, files=FILE)
    response = client.request("DELETE", "/datasets/small")
    assert (response.status_code, response.content) == (204, b"")
    assert client.get("/datasets").json() == {"datasets": []}
    for method in ("GET", "DELETE"):
        response = client.request(method, "/datasets/small")
        assert (response.status_code, response.json()["code"]) == (404, "unknown_dataset")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("name", [".incoming", "A", "a%00b", "x" * 65, "%2e%2e%5cx"])
def test_what_is_no_name_is_refused_by_name(client: Any, method: str, name: str) -> None:
    response = client.request(method, f"/datasets/{name}")
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "name")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_path_out_of_the_folder_leads_nowhere(client: Any, tmp_path: Path, method: str) -> None:
    client.post("/datasets", data=FIELDS, files=FILE)
    for path in ("/datasets/..%2fdatasets%2fsmall", "/datasets/%2e%2e%2fdatasets"):
        assert client.request(method, path).json()["code"] == "not_found"
    assert client.get("/datasets/small").status_code == 200


def test_a_wrong_field_or_file_is_named(client: Any) -> None:
    bad_name = client.post("/datasets", data=FIELDS | {"name": "../x"}, files=FILE)
    assert (bad_name.status_code, bad_name.json()["errors"][0]["field"]) == (422, "name")
    bad_file = client.post("/datasets", data=FIELDS, files={"pairs": ("x", b"a\tb\nno tab\n")})
    assert (bad_file.status_code, bad_file.json()["code"]) == (422, "unusable_data")
    assert (bad_file.json()["errors"][0]["field"], bad_file.json()["errors"][0]["value"]) == ("pairs", "'line 2'")


@pytest.mark.parametrize(
    "content_type", [None, "application/json", "multipart/form-data", "multipart/mixed; boundary=b"]
)
def test_another_content_type_is_415(client: Any, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = client.post("/datasets", content=b"x", headers=headers)
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


def test_a_broken_form_is_400(client: Any) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = client.post("/datasets", content=b"--b\r\n", headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_body")


@pytest.mark.parametrize("is_announced", [True, False])
def test_an_upload_has_a_limit_of_its_own(serve: Any, tmp_path: Path, is_announced: bool) -> None:
    async def pieces() -> Any:
        for _ in range(9):
            yield b"x" * 1000

    with serve(data=tmp_path / "data", max_body_bytes=1024, max_dataset_bytes=5000) as client:
        assert client.post("/datasets", data=FIELDS, files={"pairs": ("x", TSV * 80)}).status_code == 201
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        content = b"x" * 9000 if is_announced else pieces()
        response = client.post("/datasets", content=content, headers=headers)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert "5,000 bytes (RECURRA_MAX_DATASET_BYTES)" in response.json()["detail"]


def test_what_unpacks_to_too_much_is_413(serve: Any, tmp_path: Path) -> None:
    with serve(data=tmp_path / "data", max_dataset_unpacked_bytes=1024) as client:
        response = client.post("/datasets", data=FIELDS, files={"pairs": ("x", gzip.compress(TSV * 99))})
    assert (response.status_code, response.json()["code"]) == (413, "limit_exceeded")
    assert "RECURRA_MAX_DATASET_UNPACKED_BYTES" in response.json()["detail"]


def test_a_disk_without_room_is_507_and_leaves_nothing(client: Any, tmp_path: Path) -> None:
    """A limit on the size of files, which the upload's process inherits, stands for a full disk."""
    content = b"".join(b"%d\t%d\n" % (i, i) for i in range(40_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        response = client.post("/datasets", data=FIELDS, files={"pairs": ("x", content)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (response.status_code, response.json()["code"]) == (507, "disk_full")
    assert [path.name for path in (tmp_path / "data").rglob("*")] == ["datasets", ".incoming"]


def test_a_process_that_fails_is_a_500_that_hides_its_cause(client: Any, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    response = client.post("/datasets", data=FIELDS, files=FILE)
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert str(tmp_path) not in response.text


def test_what_a_dead_process_left_is_removed_at_the_start(serve: Any, tmp_path: Path) -> None:
    leftover = tmp_path / "data" / "datasets" / ".incoming" / "x"
    leftover.mkdir(parents=True)
    (leftover / "candidates").touch()
    with serve(data=tmp_path / "data"):
        assert not leftover.exists()


def test_the_documentation_shows_the_form(client: Any) -> None:
    post = client.get("/openapi.json").json()["paths"]["/datasets"]["post"]
    assert post["requestBody"]["content"]["multipart/form-data"]["schema"] == FORM
    assert DatasetAnswer.model_validate(EXAMPLE).name == EXAMPLE["name"]
    assert {"200", "201", "400", "409", "413", "415", "422", "503", "507"} <= post["responses"].keys()
