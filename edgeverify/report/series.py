"""Reports read back from their files: one, or the series in a folder.

A file holds a report of ``check`` or ``check-artifact``, an evaluation (``eval``), or a nightly
run, which has several reports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeverify.core.errors import UsageError
from edgeverify.core.results import FAIL, PASS, SCHEMA, UNCHECKED
from edgeverify.report.read import flat, ratio

CHECK, EVAL, NIGHTLY = "check", "eval", "nightly"
OUTCOMES = (PASS, FAIL, UNCHECKED)


@dataclass(frozen=True)
class Entry:
    """One file.

    Attributes:
        path: the file.
        kind: ``check``, ``eval`` or ``nightly``.
        time: when it ran, ISO 8601 in UTC; of a report without a time, the file's own.
        outcome: ``pass``, ``fail`` or ``unchecked``.
        environment: versions and the machine.
        cases: id → its report as it stands in the file; one of a check or an evaluation.
    """

    path: Path
    kind: str
    time: str
    outcome: str
    environment: Mapping[str, Any]
    cases: Mapping[str, Mapping[str, Any]]


def read(path: Path) -> Entry:
    """Reads one file.

    Raises:
        UsageError: it cannot be read, is no JSON, or no report of schema 1.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"is no JSON ({error})") from error
    if not isinstance(told, dict):
        raise _refused(path, f"holds a {type(told).__name__}")
    if told.get("schema") != SCHEMA:
        raise _refused(path, f"has schema {told.get('schema')!r}")
    kind = _kind(told)
    if kind is None:
        raise _refused(path, "has neither legs nor recipes nor cases")
    own = told["cases"] if kind == NIGHTLY else {subject(told): told}
    for name, case in own.items():
        fault = _fault(case)
        if fault:
            raise _refused(path, f"{name}: {fault}" if kind == NIGHTLY else fault)
    if told.get("outcome") not in OUTCOMES:
        raise _refused(path, f"has outcome {told.get('outcome')!r}")
    environment = told.get("environment") or {}
    when = told.get("started") or environment.get("time")
    time = _time(path, when) if when else _utc(path.stat().st_mtime)
    return Entry(path, kind, time, told["outcome"], environment, own)


def read_folder(folder: Path) -> tuple[Entry, ...]:
    """All reports of a folder, oldest first: ``*.json``, and ``*/nightly.json`` below it.

    Raises:
        UsageError: no such folder, no report in it, or one of its files is none.
    """
    if not folder.is_dir():
        raise UsageError("is no folder", where=folder, expected="a folder of JSON reports")
    paths = [*folder.glob("*.json"), *folder.glob("*/nightly.json")]
    entries = [read(path) for path in paths if not path.name.startswith(".")]
    return tuple(sorted(entries, key=lambda entry: (entry.time, str(entry.path))))


def subject(told: Mapping[str, Any]) -> str:
    """What a report is of: ``tinyllama tiny``, ``tinyllama tiny (transposed)``, ``x.tflite``."""
    if "recipes" in told:
        model = told["model"]
        name = f"{model.get('name', '?')} {model.get('size', '')}".strip()
        return f"{name} quality" + _layout(model)
    case = told.get("case") or {}
    if case.get("file"):
        return Path(str(case["file"])).name
    name = f"{case.get('model', '?')} {case.get('size') or ''}".strip()
    return name + _layout(case)


def _layout(facts: Mapping[str, Any]) -> str:
    layout = facts.get("kv_layout") or "default"
    return "" if layout == "default" else f" ({layout})"


def measured(told: Mapping[str, Any]) -> dict[str, float]:
    """Leg → its worst error ratio over what is allowed; infinite for a failure without a ratio.

    Args:
        told: a report; of an evaluation, nothing.
    """
    found = {}
    for name, leg in flat(told.get("legs", {})).items():
        worst, allowed = leg.get("worst"), (leg.get("threshold") or {}).get("rms")
        if worst is None or not allowed:
            continue
        value = ratio(worst.get("error_ratio"))
        found[name] = math.inf if value is None else value / allowed
    return found


def earlier_of(entries: Iterable[Entry], name: str) -> Iterator[tuple[Entry, Mapping[str, Any]]]:
    """The reports of one subject among a series; of a nightly run the first, not each recipe's."""
    for entry in entries:
        told = next((told for told in entry.cases.values() if subject(told) == name), None)
        if told is not None:
            yield entry, told


def _kind(told: Mapping[str, Any]) -> str | None:
    if isinstance(told.get("cases"), dict) and told.get("kind", NIGHTLY) == NIGHTLY:
        return NIGHTLY
    if isinstance(told.get("legs"), dict):
        return CHECK
    return EVAL if isinstance(told.get("recipes"), list) else None


def _fault(told: Any) -> str:
    """What keeps one report from being read, or ""."""
    if not isinstance(told, dict) or told.get("outcome") not in OUTCOMES:
        return "has no outcome"
    try:
        subject(told)
        if "recipes" in told:
            return "" if all(row["recipe"] and row["outcome"] for row in told["recipes"]) else "?"
        for leg in flat(told["legs"]).values():
            _ = leg["outcome"], [(tap["tap"], tap["outcome"]) for tap in leg["taps"]]
        for audit in flat(told.get("audits", {})).values():
            _ = audit["outcome"]
        measured(told)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return f"is damaged ({type(error).__name__}: {error})"
    return ""


def _time(path: Path, when: Any) -> str:
    """In UTC, to the second, so that texts sort by time."""
    try:
        moment = datetime.fromisoformat(when)
    except (TypeError, ValueError) as error:
        raise _refused(path, f"has the time {when!r}") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _refused(path: Path, what: str) -> UsageError:
    return UsageError(
        what,
        where=path,
        expected=f"a JSON report of check, eval or nightly, schema {SCHEMA}",
        fix="write it with --json",
    )
