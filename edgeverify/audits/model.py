"""What an audit found, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeverify.report.model import FAIL, NOT_APPLICABLE, PASS, UNCHECKED, worst_outcome

CONFIG, WEIGHTS, SIGNATURES = "config", "weights", "signatures"


@dataclass(frozen=True)
class Check:
    """One item that was compared.

    Attributes:
        item: what: a field (``rotary base``), a tensor (``model.norm.weight``) or a part of a
            signature (``decode.logits``).
        where: what it was read from: ``ModelConfig``, ``module`` or ``file``, or several; with the
            blocks that differ, where not all do.
        outcome: ``pass``, ``fail``, ``unchecked`` or ``not applicable``.
        expected: what the HF config, the checkpoint or the case says, as text.
        found: what was read, as text.
        reason: why, for anything but a pass, or what else there is to know.
    """

    item: str
    where: str
    outcome: str
    expected: str = ""
    found: str = ""
    reason: str = ""

    def __str__(self) -> str:
        text = f"{self.item} ({self.where})" if self.where else self.item
        if self.expected or self.found:
            text += f": expected {self.expected or 'nothing'}, found {self.found or 'nothing'}"
        return f"{text}: {self.reason}" if self.reason else text


@dataclass(frozen=True)
class AuditResult:
    """One audit: ``config``, ``weights`` or ``signatures``.

    Attributes:
        name: which.
        checks: every item that was compared, or could not be.
        notes: facts that decide nothing.
    """

    name: str
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """The worst of the checks; what is not applicable does not count, nothing at all is
        ``unchecked``."""
        counted = [check.outcome for check in self.checks if check.outcome != NOT_APPLICABLE]
        return worst_outcome(counted)

    @property
    def odd(self) -> tuple[Check, ...]:
        """The checks that failed or could not be made, failures first."""
        return tuple(c for kind in (FAIL, UNCHECKED) for c in self.checks if c.outcome == kind)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many checks had each outcome, those that occurred alone."""
        found = Counter(check.outcome for check in self.checks)
        return {k: found[k] for k in (PASS, FAIL, UNCHECKED, NOT_APPLICABLE) if found[k]}

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON report."""
        return {
            "outcome": self.outcome,
            "counts": dict(self.counts),
            "checks": [asdict(check) for check in self.checks],
            "notes": list(self.notes),
        }


def merged(name: str, parts: Iterable[AuditResult]) -> AuditResult:
    """One audit of several parts, e.g. of the module's and of the file's weights."""
    found = list(parts)
    return AuditResult(
        name,
        tuple(check for part in found for check in part.checks),
        tuple(note for part in found for note in part.notes),
    )


def unchecked(name: str, where: str, reason: str) -> AuditResult:
    """An audit that could not be made at all."""
    return AuditResult(name, (Check(name, where, UNCHECKED, reason=reason),))


@dataclass
class Readings:
    """Values that were read from one place, by field name.

    A field of a block is named ``blocks.{i}.{field}``. ``unread`` says why a field that the place
    has could not be read; a field in neither is one that the place cannot express.
    """

    where: str
    values: dict[str, Any] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
