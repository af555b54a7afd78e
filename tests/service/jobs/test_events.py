"""The news of a run: written by several processes, followed by offset, never half-read."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from model.errors import InvalidValue
from service.jobs.events import append_event, check_offset, last_events, read_events


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def steps(path: Path, offset: int = 0) -> list[int]:
    return [event.values["step"] for event in read_events(path, offset)]


def test_a_reader_goes_on_after_the_event_whose_offset_it_names(path: Path) -> None:
    for step in range(5):
        append_event(path, "progress", step=step, text="é")
    offsets = [event.offset for event in read_events(path)]
    assert offsets[-1] == path.stat().st_size
    for number, offset in enumerate(offsets):
        assert steps(path, offset) == list(range(number + 1, 5))


def test_a_line_that_was_cut_short_is_passed_over_and_harms_no_other(path: Path) -> None:
    append_event(path, "progress", step=1)
    with path.open("ab") as stream:
        stream.write(b'{"event": "progress", "step": 2, "text": "\xc3')
    assert steps(path) == [1]
    append_event(path, "progress", step=3)
    assert steps(path) == [1, 3]


def test_lines_of_several_writers_do_not_mix(path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(50):
            append_event(path, "progress", step=number, text="x" * 1000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(steps(path)) == sorted([*range(4)] * 50)


def test_the_newest_event_of_each_kind_is_found_in_a_long_file(path: Path) -> None:
    append_event(path, "stage", stage="train")
    for step in range(300):
        append_event(path, "progress", step=step, text="x" * 500)
    append_event(path, "stage", stage="evaluate")
    newest = last_events(path)
    assert (newest["progress"]["step"], newest["stage"]["stage"]) == (299, "evaluate")


def test_a_run_without_events_has_none(path: Path) -> None:
    assert (steps(path), last_events(path), check_offset(path, None)) == ([], {}, 0)


@pytest.mark.parametrize("given", ["-1", "x", "1", "999999", "9" * 20, "١"])
def test_an_id_that_is_no_events_is_refused(path: Path, given: str) -> None:
    append_event(path, "stage", stage="train")
    with pytest.raises(InvalidValue) as caught:
        check_offset(path, given)
    assert caught.value.field == "Last-Event-ID"


def test_the_id_of_an_event_is_accepted(path: Path) -> None:
    append_event(path, "stage", stage="train")
    size = path.stat().st_size
    assert check_offset(path, str(size)) == size
