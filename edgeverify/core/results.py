"""Stores what was measured, what was allowed, and the outcome; nothing here decides anything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeverify.core.leg import Leg

SCHEMA = 1
PASS, FAIL, UNCHECKED = "pass", "fail", "unchecked"
CONFIG, WEIGHTS, SIGNATURES, EDGES = "config", "weights", "signatures", "edges"
BUNDLE = "bundle"  # of a container alone
# The outcome of an audit or an invariant that does not apply; it counts neither way.
NOT_APPLICABLE = "not applicable"


def worst_outcome(outcomes: Sequence[str]) -> str:
    """Returns ``fail`` before ``unchecked`` before ``pass``; ``unchecked`` if there is nothing."""
    for outcome in (FAIL, UNCHECKED):
        if outcome in outcomes:
            return outcome
    return PASS if outcomes else UNCHECKED


@dataclass(frozen=True)
class TapResult:
    """The result of one tap at one step.

    Attributes:
        tap: ``prefill.0/blocks.3.attn.k``.
        outcome: ``pass``, ``fail`` or ``unchecked``.
        error: relative L2 error against the oracle, rms over the token rows.
        floor: the float32 reference's own relative error, likewise.
        error_ratio: error over floor, rms over the rows.
        row_ratio: error over floor at the worst row.
        worst_row: position of that row in the conversation.
        isolated_ratio: the rms ratio of the run whose block is fed with the oracle's input, or
            None.
        isolated_row_ratio: likewise, at the worst row.
        isolated_outcome: the verdict of that run, or None.
        reason: why, for anything but a pass; for a pass, "" or a remark.
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
    """The place where a leg stops being the same model.

    Attributes:
        tap: the first tap, in forward order, that failed: in the whole run or, if the
            block-by-block run fails earlier, in that run.
        error_ratio: the tap's rms ratio in the run that it failed in (inf where the floor is zero).
        isolated: every tap that fails although all its inputs are the oracle's, without its step,
            in forward order; for a block in which that cannot be judged, the first tap that fails
            when the block is fed with the oracle's input.
    """

    tap: str
    error_ratio: float
    isolated: tuple[str, ...] = ()


@dataclass(frozen=True)
class LegResult:
    """The result of one leg.

    Attributes:
        attribution: for a quantized file: which parts moved the logits, and how far
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
        """The leg's name in reports."""
        return str(self.leg)


@dataclass(frozen=True)
class FileFacts:
    """The operators and graphs of a converted file.

    Attributes:
        bytes: the file's size.
        ops: signature → operator → count.
        graphs: signature → the name of its subgraph.
        nodes: signature → tap → the index, in execution order, of the operator that computes it.
    """

    bytes: int
    ops: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    graphs: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One sentence for a person, and the place that it is about.

    Attributes:
        id: stable and machine-readable, e.g. ``authoring.divergence``.
        leg: the leg to blame.
        tap: the tap that shows it, or "".
        message: what is wrong and what to look at.
        cause: the kind of a cause, e.g. ``rope.base``, or "".
        ratio: the error ratio that remains once the cause is removed, or None.
        taps: all taps that it applies to, without their steps.
        changes: for a cause: ``actual value → right value``; several if each of them would explain
            the same values.
        shape: the pattern of the error, e.g. ``position 0 agrees, all others differ``.
        tried: how many repairs were tried in vain; 0 if none was tried, or one was right.
        stopped: seconds after which the search was broken off, or None.
        operator: for an operator: ``57 FULLY_CONNECTED``.
        signature: for an operator: the signature that it is in.
        module: for an operator: the torch module that it comes from.
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
    stopped: float | None = None
    operator: str = ""
    signature: str = ""
    module: str = ""


@dataclass(frozen=True)
class InvariantResult:
    """The result of one invariant on one implementation.

    Attributes:
        invariant: e.g. ``cache.split``.
        implementation: ``reference``, ``reauthored`` or ``tflite-{kernel}``.
        outcome: ``pass``, ``fail``, ``unchecked``, or ``not applicable``.
        examples: how many cases were tried.
        rms_ratio, row_ratio: the largest ratios among the cases that are compared with the floor.
        reason: what was observed, for anything but a pass.
        contract: the rule that is broken, for a failure.
        arguments: the shortest case that fails.
        seed: the seed of the random cases, for a failure.
        reproduction: a command that runs the invariant again, for a failure.
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
    """One array of a golden that no longer agrees.

    Attributes:
        key: ``prefill.0/blocks.3.attn.k``, or the name of a figure, e.g. ``ops.RESHAPE``.
        what: what changed in words: values, shape, dtype, missing, extra.
        ratio: the difference in units of the noise floor, rms over the rows, or None if the change
            is not one of size.
    """

    key: str
    what: str
    ratio: float | None = None


@dataclass(frozen=True)
class GoldenResult:
    """The comparison of a run with one golden.

    Attributes:
        name: the golden's file name.
        outcome: ``pass``, ``fail`` or ``unchecked``.
        moved: what changed since the golden was made, out of ``config``, ``weights``, ``inputs``,
            ``reference``, ``oracle``, ``reauthored``, ``converter``, ``file`` (its output has
            followed one of these), ``quantizer``, ``kernels``, ``quality`` (of a recipe).
        lines: what changed and what to do, for a person; the first is the summary.
        changes: the arrays that no longer agree, in forward order.
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
        """The worst outcome of all that was checked; ``unchecked`` without legs and goldens."""
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
        """Returns the JSON report; infinite and undefined numbers become "inf" and "nan"."""
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
    """Turns ``{"runtime:tf_lite": x}`` into ``{"runtime": {"tf_lite": x}}``; keeps other names."""
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
    """Makes values JSON: an infinite ratio (over a zero floor) becomes a string."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


@dataclass(frozen=True)
class Check:
    """One item that was compared.

    Attributes:
        item: a field (``rotary base``), a tensor (``model.norm.weight``) or a part of a signature
            (``decode.logits``).
        where: the source that it was read from: ``ModelConfig``, ``module`` or ``file``, or
            several; with the blocks that differ, if not all do.
        outcome: ``pass``, ``fail``, ``unchecked`` or ``not applicable``.
        expected: the value that the HF config, the checkpoint or the case states, as text.
        found: the value that was read, as text.
        reason: why, for anything but a pass; or a remark.
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
    """One audit and its checks; ``notes`` are facts that decide nothing."""

    name: str
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """The worst outcome of the checks.

        A check that is not applicable does not count. Without any check it is ``unchecked``.
        """
        counted = [check.outcome for check in self.checks if check.outcome != NOT_APPLICABLE]
        return worst_outcome(counted)

    @property
    def odd(self) -> tuple[Check, ...]:
        """The checks that failed or could not be made, failures first."""
        return tuple(c for kind in (FAIL, UNCHECKED) for c in self.checks if c.outcome == kind)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many checks had each outcome, without outcomes that did not occur."""
        found = Counter(check.outcome for check in self.checks)
        return {k: found[k] for k in (PASS, FAIL, UNCHECKED, NOT_APPLICABLE) if found[k]}

    def to_dict(self) -> dict[str, Any]:
        """Returns the audit as it appears in the JSON report."""
        return {
            "outcome": self.outcome,
            "counts": dict(self.counts),
            "checks": [asdict(check) for check in self.checks],
            "notes": list(self.notes),
        }


def merged(name: str, parts: Iterable[AuditResult]) -> AuditResult:
    """Merges the parts of an audit, e.g. of the module's and of the file's weights."""
    found = list(parts)
    return AuditResult(
        name,
        tuple(check for part in found for check in part.checks),
        tuple(note for part in found for note in part.notes),
    )


def unchecked(name: str, where: str, reason: str) -> AuditResult:
    """Returns the result of an audit that could not be made at all."""
    return AuditResult(name, (Check(name, where, UNCHECKED, reason=reason),))
