"""A report from its JSON again, as the renderers take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from edgeverify.core.leg import Leg
from edgeverify.core.results import (
    AuditResult,
    Check,
    Divergence,
    FileFacts,
    Finding,
    GoldenChange,
    GoldenResult,
    InvariantResult,
    LegResult,
    Report,
    TapResult,
)

Fact = TypeVar("Fact")
_NUMBERS = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}


def flat(nested: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """``{"runtime": {"tf_lite": x}}`` as ``{"runtime:tf_lite": x}``; other names as they are.

    Args:
        nested: ``legs`` or ``audits`` of a JSON report: what has an outcome is one of them.
    """
    out: dict[str, Mapping[str, Any]] = {}
    for name, value in nested.items():
        if "outcome" in value:
            out[name] = value
        else:
            out.update({f"{name}:{rest}": inner for rest, inner in value.items()})
    return out


def ratio(value: Any) -> float | None:
    """A number of a JSON report, where infinity is the string "inf"; None for None."""
    return _NUMBERS[value] if isinstance(value, str) else value


def report_from(told: Mapping[str, Any]) -> Report:
    """The report that a JSON report, schema 1, was made of.

    Args:
        told: as ``Report.to_dict`` gives it.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is no such report.
    """
    return Report(
        case=told["case"],
        environment=told["environment"],
        legs={name: _leg(name, leg) for name, leg in flat(told["legs"]).items()},
        findings=tuple(_fact(Finding, finding) for finding in told.get("findings", ())),
        timings=told.get("timings", {}),
        audits={name: _audit(name, audit) for name, audit in flat(told.get("audits", {})).items()},
        invariants=tuple(_fact(InvariantResult, found) for found in told.get("invariants", ())),
        goldens=tuple(_golden(golden) for golden in told.get("goldens", ())),
        files={name: _fact(FileFacts, facts) for name, facts in told.get("files", {}).items()},
    )


def _leg(name: str, told: Mapping[str, Any]) -> LegResult:
    taps = tuple(_fact(TapResult, tap) for tap in told["taps"])
    worst, first = told.get("worst"), told.get("first_divergence")
    return LegResult(
        leg=Leg.of(name),
        outcome=told["outcome"],
        threshold=told["threshold"],
        taps=taps,
        worst=None if worst is None else next((t for t in taps if t.tap == worst["tap"]), None),
        first_divergence=None if first is None else _fact(Divergence, first),
        reason=told.get("reason", ""),
        notes=tuple(told.get("notes", ())),
        attribution=told.get("attribution", {}),
        along={
            place: tuple(ratio(value) for value in row)
            for place, row in told.get("along", {}).items()
        },
    )


def _audit(name: str, told: Mapping[str, Any]) -> AuditResult:
    checks = tuple(_fact(Check, check) for check in told.get("checks", ()))
    return AuditResult(name, checks, tuple(told.get("notes", ())))


def _golden(told: Mapping[str, Any]) -> GoldenResult:
    changes = tuple(_fact(GoldenChange, change) for change in told.get("changes", ()))
    return _fact(GoldenResult, {**told, "changes": changes})


def _fact(kind: type[Fact], told: Mapping[str, Any]) -> Fact:
    """A dataclass from its dict; a later version's fields are left out."""
    known = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{k: _value(v, known[k]) for k, v in told.items() if k in known})


def _value(value: Any, kind: str) -> Any:
    if kind.startswith("float"):
        return ratio(value)
    return tuple(value) if isinstance(value, list) else value
