"""Whether a scored version goes live, and putting it there: what the serving process does for a job itself."""

from __future__ import annotations

from typing import Any, Protocol

from model.errors import RecurraError
from service.errors import Draining, UnknownModel
from service.inference.registry import Registry
from service.jobs.failures import Failure, JobFailed
from service.jobs.process import Interrupted
from service.jobs.run import RunFolder
from service.jobs.spec import JobSpec, Promote


class Promoter(Protocol):
    """`PromoteLive`, or a test's stand-in for it."""

    def is_stale(self, spec: JobSpec, evaluation: dict[str, Any], /) -> bool:
        """Whether the live version is no longer the one that the candidate was compared with."""

    def promote(self, run: RunFolder, spec: JobSpec, evaluation: dict[str, Any], /) -> dict[str, Any]:
        """What the job came to."""


class PromoteLive:
    """Promotes in the registry of this process; other replicas follow the pointer."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def is_stale(self, spec: JobSpec, evaluation: dict[str, Any], /) -> bool:
        live = self._live(spec.model)
        return spec.promote == "if_better" and live not in (evaluation["live"], evaluation["version"])

    def promote(self, run: RunFolder, spec: JobSpec, evaluation: dict[str, Any], /) -> dict[str, Any]:
        """Blocks until the version answers requests, or stays beside the live one.

        Raises:
            JobFailed: it should go live and does not load.
            Interrupted: the service is shutting down.
        """
        goes_live, reason = decide(spec.promote, evaluation)
        if goes_live and self._live(spec.model) != evaluation["version"]:
            self._switch(spec.model, evaluation["version"], f"job {run.id}: {reason}")
        return {**evaluation, "promoted": goes_live, "reason": reason}

    def _live(self, model: str) -> str | None:
        try:
            return self._registry.store.live(model)
        except UnknownModel:
            return None

    def _switch(self, model: str, version: str, reason: str) -> None:
        try:
            self._registry.promote_now(model, version, reason=reason)
        except Draining as exc:
            raise Interrupted from exc
        except RecurraError as exc:
            detail = f"version {version} of {model} is there but could not go live: {exc}"
            raise JobFailed(Failure(code="not_promoted", detail=detail)) from exc


def decide(promote: Promote, evaluation: dict[str, Any]) -> tuple[bool, str]:
    """Whether the version goes live, and why."""
    comparison = evaluation["comparison"]
    if promote == "never":
        return False, "promote is never"
    if promote == "always":
        return True, "promote is always"
    if evaluation.get("live_refused"):
        return True, "the live version cannot be loaded"
    if comparison is None:
        return True, "no other version was live"
    numbers = (
        f"BLEU {comparison['bleu_candidate']:.2f} against {comparison['bleu_live']:.2f} live, "
        f"p = {comparison['p_value']:.3f}"
    )
    return bool(comparison["is_better"]), numbers
