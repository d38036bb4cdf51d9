"""The verdict as plain data: what was measured, what was allowed, what came of it.

Nothing here decides anything: ``compare`` and the suites' judges make results, ``report`` reads
them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeverify.core.leg import Leg

SCHEMA = 1
PASS, FAIL, UNCHECKED = "pass", "fail", "unchecked"
# Of an audit or an invariant that has nothing to say here; it counts neither way.
NOT_APPLICABLE = "not applicable"


def worst_outcome(outcomes: Sequence[str]) -> str:
    """``fail`` before ``unchecked`` before ``pass``; nothing at all is ``unchecked``."""
    for outcome in (FAIL, UNCHECKED):
        if outcome in outcomes:
            return outcome
    return PASS if outcomes else UNCHECKED


@dataclass(frozen=True)
class TapResult:
    """One tap at one step.

    Attributes:
        tap: ``prefill.0/blocks.3.attn.k``.
        outcome: ``pass``, ``fail`` or ``unchecked``.
        error: relative L2 error against the oracle, rms over the token rows.
        floor: the float32 reference's own relative error, likewise.
        error_ratio: error over floor, rms over the rows.
        row_ratio: error over floor at the worst row.
        worst_row: position of that row in the conversation.
        isolated_ratio: the rms ratio when the block was fed with the oracle's input, or None.
        isolated_row_ratio: likewise, at the worst row.
        isolated_outcome: the verdict of that run, or None.
        reason: why, for anything but a pass; of a pass, what there is to tell of it.
    """

    tap: str
    outcome: str
    error: float | None = None
    floor: float | None = None
    error_ratio: float | None = None
    row_ratio: float | None = None
    worst_row: int | None = None
    isolated_ratio: float | None = None
    isolated_row_ratio: float | None = None
    isolated_outcome: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Divergence:
    """Where a leg stops being the same model.

    Attributes:
        tap: the first tap, in forward order, that failed: of the run as a whole or, where the
            block-by-block run sees it earlier, of that one.
        error_ratio: its rms ratio in the run that saw it (inf where the floor is zero).
        isolated: every tap that fails when all that it is computed from is the oracle's, without
            its step, in forward order; for a block in which that cannot be judged, the first tap
            that fails when the block is fed with the oracle's input.
    """

    tap: str
    error_ratio: float
    isolated: tuple[str, ...] = ()


@dataclass(frozen=True)
class LegResult:
    """What came of one leg.

    Attributes:
        attribution: of a quantized file: who moved the logits, and how far
            (``edgeverify.legs.quantization.leg.attribution``).
        along: place (``embed``, a block's number, ``head``) → the largest row ratio of its taps
            at each position of the conversation; None where nothing was measured
            (``edgeverify.core.profile.along``).
    """

    leg: Leg
    outcome: str
    threshold: Mapping[str, float]
    taps: tuple[TapResult, ...] = ()
    worst: TapResult | None = None
    first_divergence: Divergence | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    attribution: Mapping[str, Any] = field(default_factory=dict)
    along: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As it stands in reports."""
        return str(self.leg)


@dataclass(frozen=True)
class FileFacts:
    """What a converted file is made of.

    Attributes:
        bytes: its size.
        ops: signature → operator → how many there are.
        graphs: signature → the name of its subgraph.
        nodes: signature → tap → the place, in execution order, of the operator that makes it.
    """

    bytes: int
    ops: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    graphs: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One sentence for a person, and where it belongs.

    Attributes:
        id: stable and machine-readable, e.g. ``authoring.divergence``.
        leg: the leg to blame.
        tap: the tap it was seen at, or "".
        message: what was found and what to look at.
        cause: the kind of a cause, e.g. ``rope.base``, or "".
        ratio: the error ratio that is left once the cause is taken away, or None.
        taps: all taps it holds for, without their steps.
        changes: of a cause: ``what was found → what is right``; several where each of them would
            explain the same values.
        shape: what the error's shape says, e.g. ``position 0 agrees, all others differ``.
        tried: how many repairs were tried in vain; 0 where none was, or one was found.
        operator: of an operator: ``57 FULLY_CONNECTED``.
        signature: of an operator: the signature that it is in.
        module: of an operator: the torch module that it comes from.
    """

    id: str
    leg: str
    tap: str
    message: str
    cause: str = ""
    ratio: float | None = None
    taps: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    shape: tuple[str, ...] = ()
    tried: int = 0
    operator: str = ""
    signature: str = ""
    module: str = ""


@dataclass(frozen=True)
class InvariantResult:
    """One invariant, asked of one implementation.

    Attributes:
        invariant: e.g. ``cache.split``.
        implementation: ``reference``, ``reauthored`` or ``tflite-{kernel}``.
        outcome: ``pass``, ``fail``, ``unchecked``, or ``not applicable``.
        examples: how many cases were tried.
        rms_ratio, row_ratio: the largest ratios among them, of what is held to the floor.
        reason: what was seen, for anything but a pass.
        contract: what should hold, for a failure.
        arguments: the shortest case that fails.
        seed: of the drawing, for a failure.
        reproduction: a command that asks again, for a failure.
    """

    invariant: str
    implementation: str
    outcome: str
    examples: int = 0
    rms_ratio: float | None = None
    row_ratio: float | None = None
    reason: str = ""
    contract: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    reproduction: str = ""


@dataclass(frozen=True)
class GoldenChange:
    """One array of a golden that no longer holds.

    Attributes:
        key: ``prefill.0/blocks.3.attn.k``, or the name of a figure, e.g. ``ops.RESHAPE``.
        what: what changed in words: values, shape, dtype, missing, extra.
        ratio: the difference in units of the noise floor, rms over the rows, or None where it is
            no matter of size.
    """

    key: str
    what: str
    ratio: float | None = None


@dataclass(frozen=True)
class GoldenResult:
    """A run held against one golden.

    Attributes:
        name: the golden's file name.
        outcome: ``pass``, ``fail`` or ``unchecked``.
        moved: who changed since the golden was made: of ``config``, ``weights``, ``inputs``,
            ``reference``, ``oracle``, ``reauthored``, ``converter``, ``file`` (what it gives has
            followed one of these), ``quantizer``, ``kernels``, ``quality`` (of a recipe).
        lines: what was found and what to do, for a person; the first is the summary.
        changes: what no longer holds, in forward order.
    """

    name: str
    outcome: str
    moved: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    changes: tuple[GoldenChange, ...] = ()


@dataclass(frozen=True)
class Report:
    """The result of a check. ``to_dict()`` is the JSON report, schema 1."""

    case: Mapping[str, Any]
    environment: Mapping[str, Any]
    legs: Mapping[str, LegResult]
    findings: tuple[Finding, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    audits: Mapping[str, AuditResult] = field(default_factory=dict)
    invariants: tuple[InvariantResult, ...] = ()
    goldens: tuple[GoldenResult, ...] = ()
    files: Mapping[str, FileFacts] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """The worst of all that was asked; a report without legs is ``unchecked``."""
        legs = [leg.outcome for leg in self.legs.values()]
        audits = [audit.outcome for audit in self.audits.values()]
        asked = [result.outcome for result in self.invariants if result.outcome != NOT_APPLICABLE]
        goldens = [golden.outcome for golden in self.goldens]
        if not legs and not goldens:
            legs = [UNCHECKED]
        return worst_outcome([*legs, *audits, *asked, *goldens])

    @property
    def passed(self) -> bool:
        return self.outcome == PASS

    def to_dict(self) -> dict[str, Any]:
        """The JSON report. Infinite and undefined numbers are the strings "inf" and "nan"."""
        legs = _nested({name: _leg_dict(leg) for name, leg in self.legs.items()})
        return _plain(
            {
                "schema": SCHEMA,
                "outcome": self.outcome,
                "case": dict(self.case),
                "environment": dict(self.environment),
                "legs": legs,
                "audits": _nested({n: audit.to_dict() for n, audit in self.audits.items()}),
                "invariants": [asdict(result) for result in self.invariants],
                **({"goldens": [asdict(g) for g in self.goldens]} if self.goldens else {}),
                "findings": [asdict(finding) for finding in self.findings],
                "timings": dict(self.timings),
                **({"files": {n: asdict(f) for n, f in self.files.items()}} if self.files else {}),
            }
        )


def _nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """``{"runtime:tf_lite": x}`` as ``{"runtime": {"tf_lite": x}}``; other names as they are."""
    out: dict[str, Any] = {}
    for name, value in named.items():
        first, _, rest = name.partition(":")
        if rest:
            out.setdefault(first, {})[rest] = value
        else:
            out[name] = value
    return out


def _leg_dict(leg: LegResult) -> dict[str, Any]:
    worst = leg.worst
    return {
        "outcome": leg.outcome,
        "reason": leg.reason,
        "threshold": dict(leg.threshold),
        "worst": None
        if worst is None
        else {"tap": worst.tap, "error_ratio": worst.error_ratio, "row_ratio": worst.row_ratio},
        "first_divergence": None if leg.first_divergence is None else asdict(leg.first_divergence),
        "taps": [asdict(tap) for tap in leg.taps],
        "notes": list(leg.notes),
        **({"attribution": dict(leg.attribution)} if leg.attribution else {}),
        **({"along": {place: list(row) for place, row in leg.along.items()}} if leg.along else {}),
    }


def _plain(value: Any) -> Any:
    """JSON has no infinity: a ratio over a zero floor is written as a string."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


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
