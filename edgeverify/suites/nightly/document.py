"""Makes one report of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeverify.core.results import SCHEMA, UNCHECKED, worst_outcome
from edgeverify.suites.nightly import store

MISSING = "nightly.missing"


def of_run(
    folder: Path, plan: Mapping[str, Any], *, seconds: float | None = None
) -> dict[str, Any]:
    """Makes the document of a run whose plan is done.

    Args:
        folder: the run's folder.
        plan: as ``plan.json`` holds it. No shard planned a case that has no key.
        seconds: how long this run took.
    """
    reports = {name: store.read_case(folder, name) for name in plan["cases"]}
    # These belong to an older run in the same folder; this run has not reached them.
    for name, key in plan["cases"].items():
        facts = (reports[name] or {}).get("nightly", {})
        if facts.get("key") != key:
            reports[name] = None
    return _document(
        reports,
        started=plan["started"],
        seconds=seconds,
        shard=plan["shard"],
        excluded=plan["excluded"],
    )


def _document(
    reports: Mapping[str, Mapping[str, Any] | None],
    *,
    started: str,
    seconds: float | None,
    shard: str | None,
    excluded: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    cases = {name: report or _missing(name) for name, report in reports.items()}
    environment, differing = _environment(cases.values())
    return {
        "schema": SCHEMA,
        "kind": "nightly",
        "started": started,
        "seconds": seconds,
        "outcome": worst_outcome([report["outcome"] for report in cases.values()]),
        "shard": shard,
        "environment": environment,
        "differing": differing,
        "missing": [name for name, report in cases.items() if _is_missing(report)],
        "excluded": list(excluded),
        "cases": cases,
    }


def _is_missing(report: Mapping[str, Any]) -> bool:
    return any(finding["id"] == MISSING for finding in report.get("findings", ()))


def _missing(name: str) -> dict[str, Any]:
    message = "there is no result: the run was ended before it, or its shard is not here"
    return {
        "schema": SCHEMA,
        "outcome": UNCHECKED,
        "case": {},
        "environment": {},
        "legs": {},
        "audits": {},
        "invariants": [],
        "findings": [{"id": MISSING, "leg": "", "tap": "", "message": message}],
        "timings": {},
        "nightly": {"id": name},
    }


# These facts describe the run of one case, not the environment that it ran in.
OF_ONE_CASE = ("time", "memory", "peak_memory")


def _environment(reports: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Returns the facts that all environments share, and the values of those that differ."""
    seen: dict[str, list[Any]] = {}
    for report in reports:
        for name, value in report.get("environment", {}).items():
            if name in OF_ONE_CASE:
                continue
            values = seen.setdefault(name, [])
            if value not in values:
                values.append(value)
    shared = {name: values[0] for name, values in seen.items() if len(values) == 1}
    return shared, {n: sorted(map(str, values)) for n, values in seen.items() if len(values) > 1}
