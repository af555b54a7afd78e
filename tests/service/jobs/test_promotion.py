"""Whether a version goes live, and what happens where it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from service.errors import Draining, UnknownModel, VersionRefused
from service.jobs.failures import JobFailed
from service.jobs.process import Interrupted
from service.jobs.promotion import PromoteLive, decide
from service.jobs.run import RunFolder
from service.jobs.spec import JobSpec, Promote

BETTER = {"bleu_live": 20.0, "bleu_candidate": 25.0, "p_value": 0.001, "is_better": True}
CHANCE = {"bleu_live": 20.0, "bleu_candidate": 20.1, "p_value": 0.4, "is_better": False}


@pytest.mark.parametrize(
    ("promote", "comparison", "goes_live"),
    [
        ("never", BETTER, False),
        ("always", CHANCE, True),
        ("if_better", BETTER, True),
        ("if_better", CHANCE, False),
        ("if_better", None, True),
    ],
)
def test_only_a_better_version_goes_live(promote: Promote, comparison: Any, goes_live: bool) -> None:
    assert decide(promote, {"comparison": comparison})[0] is goes_live


def test_a_live_version_that_cannot_be_loaded_keeps_nothing_back() -> None:
    assert decide("if_better", {"comparison": None, "live_refused": "is missing"})[0]


class StubRegistry:
    """The registry as promotion sees it."""

    def __init__(self, live: str | None, error: Exception | None = None) -> None:
        self.live_version, self.error = live, error
        self.promoted: list[str] = []
        self.store = self

    def live(self, _: str) -> str | None:
        if self.live_version is None:
            raise UnknownModel("en-fr", [])
        return self.live_version

    def promote_now(self, _: str, version: str, *, reason: str) -> None:
        if self.error:
            raise self.error
        self.promoted.append(version)
        self.live_version = version


def evaluation(live: str | None, comparison: Any = None) -> dict[str, Any]:
    return {"version": "new", "live": live, "comparison": comparison, "scores": {}}


def asking(spec: JobSpec, promote: Promote) -> JobSpec:
    return replace(spec, promote=promote)


def promoter(registry: StubRegistry) -> PromoteLive:
    return PromoteLive(cast(Any, registry))


def test_a_job_tells_what_it_came_to(tmp_path: Path, spec: JobSpec) -> None:
    registry = StubRegistry("old")
    result = promoter(registry).promote(RunFolder(tmp_path), asking(spec, "if_better"), evaluation("old", BETTER))
    assert (result["promoted"], registry.promoted) == (True, ["new"])
    assert "25.00 against 20.00" in result["reason"]


def test_promoting_again_after_a_restart_changes_nothing(tmp_path: Path, spec: JobSpec) -> None:
    registry = StubRegistry("new")
    assert promoter(registry).promote(RunFolder(tmp_path), asking(spec, "always"), evaluation(None))["promoted"]
    assert registry.promoted == []


@pytest.mark.parametrize(
    ("live", "compared_with", "is_stale"),
    [("old", "old", False), ("other", "old", True), ("new", "old", False), (None, None, False), ("other", None, True)],
)
def test_a_comparison_with_a_version_that_is_no_longer_live_is_stale(
    spec: JobSpec, live: str | None, compared_with: str | None, is_stale: bool
) -> None:
    assert promoter(StubRegistry(live)).is_stale(asking(spec, "if_better"), evaluation(compared_with)) is is_stale


def test_a_version_that_does_not_load_fails_the_job_and_stays(tmp_path: Path, spec: JobSpec) -> None:
    registry = StubRegistry("old", VersionRefused("en-fr", "new", "it does not load"))
    with pytest.raises(JobFailed, match="does not load") as caught:
        promoter(registry).promote(RunFolder(tmp_path), asking(spec, "always"), evaluation("old"))
    assert caught.value.failure.code == "not_promoted"


def test_a_shutdown_in_the_middle_leaves_the_stage_open(tmp_path: Path, spec: JobSpec) -> None:
    registry = StubRegistry("old", Draining("shutting down"))
    with pytest.raises(Interrupted):
        promoter(registry).promote(RunFolder(tmp_path), asking(spec, "always"), evaluation("old"))
