"""The result of one fault on one port, and the summary of many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeverify.core import taps
from edgeverify.core.results import FAIL, PASS, LegResult
from edgeverify.suites.selftest.faults.fault import REFUSED, Fault

DETECTED, MISSED, QUIET, FALSE_ALARM, AUDITS = (
    "detected",
    "missed",
    "quiet",
    "false alarm",
    "left to the audits",
)
# The fault that changes nothing: the port itself.
UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Row:
    """One fault, or harmless change, on one port.

    Attributes:
        fault, area, port: what was run.
        verdict: ``DETECTED`` or ``MISSED`` of a fault, ``QUIET`` or ``FALSE_ALARM`` of a harmless
            change, ``AUDITS`` of a fault that no activation can show.
        expected_leg, expected: the leg to blame and the parts to name, from the fault.
        leg: the leg that was blamed, or "".
        first: the first diverging tap with its step, or the message of a refusal.
        named: the parts that were named on their own; of a harmless change: the taps that passed
            with a remark.
        leg_right, block_right, sublayer_right: whether leg, faulty blocks and first faulty taps
            are those of the fault; None where nothing was to be blamed.
        ratio: the largest error ratio of any tap that fails, or of a harmless change of any tap
            (rms over the rows of a step); None where no value was compared. Infinite over a
            floor of zero.
        excess: the largest ratio as a multiple of what is allowed: above 1 fails.
        seconds: how long it took.
        cause: the fault's true cause.
        diagnosis: the kinds of cause that the diagnosis named; None where none ran.
        findings: ids of audit findings.
        kinds: the kinds of cause that are true of the fault. They stand in the catalogue, and so
            not in the JSON.
    """

    fault: str
    area: str
    port: str
    verdict: str
    expected_leg: str
    expected: tuple[str, ...]
    leg: str = ""
    first: str = ""
    named: tuple[str, ...] = ()
    leg_right: bool | None = None
    block_right: bool | None = None
    sublayer_right: bool | None = None
    ratio: float | None = None
    excess: float | None = None
    seconds: float = 0.0
    cause: str = ""
    diagnosis: tuple[str, ...] | None = None
    findings: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def diagnosis_right(self) -> bool:
        """Whether a cause was named, and only causes that are true of the fault."""
        return bool(self.diagnosis) and set(self.diagnosis or ()) <= set(self.kinds)

    @property
    def diagnosis_wrong(self) -> bool:
        """Whether a cause was named that is not true of the fault."""
        return bool(self.diagnosis) and not self.diagnosis_right

    @property
    def wrong(self) -> bool:
        """A miss, a false alarm, or a wrong blame."""
        blames = (self.leg_right, self.block_right, self.sublayer_right)
        return self.verdict in (MISSED, FALSE_ALARM) or False in blames

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: infinite ratios are the string "inf"."""
        plain = asdict(self)
        del plain["kinds"]
        for name in ("ratio", "excess"):
            if plain[name] is not None and not math.isfinite(plain[name]):
                plain[name] = str(plain[name])
        return plain


def of_leg(
    fault: Fault,
    port: str,
    leg: LegResult,
    num_blocks: int,
    seconds: float,
    diagnosis: tuple[str, ...] | None = None,
) -> Row:
    """The row of a fault whose leg was judged."""
    expected = fault.expected(num_blocks)
    outcome = PASS if fault.harmless else leg.outcome
    ratio, excess = _largest(leg, outcome)
    facts: dict[str, Any] = {
        **_facts(fault, port, expected, seconds),
        "ratio": ratio,
        "excess": excess,
        "first": "" if leg.first_divergence is None else leg.first_divergence.tap,
    }
    if fault.harmless:
        remarked = tuple(sorted({taps.split(r.tap)[1] for r in leg.taps if _has_remark(r)}))
        right = leg.outcome == PASS and set(remarked) == set(expected)
        return Row(**facts, verdict=QUIET if right else FALSE_ALARM, named=remarked)
    if leg.outcome != FAIL or leg.first_divergence is None:
        return Row(**facts, verdict=AUDITS if fault.unseen else MISSED)
    named = leg.first_divergence.isolated
    step, first = taps.split(leg.first_divergence.tap)
    right_step = not fault.step or step == fault.step
    return Row(
        **facts,
        verdict=DETECTED,
        leg=leg.name,
        named=named,
        leg_right=leg.name == fault.leg,
        block_right=_parts(named) == _parts(expected),
        sublayer_right=set(named) == set(expected) and first == expected[0] and right_step,
        diagnosis=diagnosis,
    )


def of_refusal(fault: Fault, port: str, leg: str, message: str, seconds: float) -> Row:
    """The row of a fault that kept the check from running."""
    facts = {**_facts(fault, port, fault.where, seconds), "first": message}
    if fault.harmless:
        return Row(**facts, verdict=FALSE_ALARM)
    right = fault.where == (REFUSED,) and fault.refusal in message
    return Row(
        **facts,
        verdict=DETECTED,
        leg=leg,
        named=(REFUSED,),
        leg_right=leg == fault.leg,
        block_right=right,
        sublayer_right=right,
    )


def _facts(fault: Fault, port: str, expected: tuple[str, ...], seconds: float) -> dict[str, Any]:
    return {
        "fault": fault.name,
        "area": fault.area,
        "port": port,
        "expected_leg": "" if fault.harmless else fault.leg,
        "expected": expected,
        "seconds": round(seconds, 3),
        "cause": fault.cause,
        "kinds": fault.kinds,
    }


def _has_remark(result: Any) -> bool:
    """Whether a tap passes and yet has something to say."""
    return result.outcome == PASS and bool(result.reason)


def _parts(named: Iterable[str]) -> set[int | str]:
    """The parts of the model that taps belong to: blocks by number, others by name."""
    indices = ((taps.block_index(tap), tap) for tap in named)
    return {tap if index is None else index for index, tap in indices}


def _largest(leg: LegResult, outcome: str) -> tuple[float | None, float | None]:
    """The largest error ratio, and multiple of what is allowed, of the taps with that outcome.

    A tap that fails for its shape or its NaNs has none.
    """
    ratios: list[float] = []
    excesses: list[float] = []
    for result in leg.taps:
        if result.outcome != outcome or _has_remark(result):
            continue
        decode = taps.split(result.tap)[0].startswith("decode")
        pairs = [(result.error_ratio, result.row_ratio)]
        if result.isolated_outcome == outcome:
            pairs.append((result.isolated_ratio, result.isolated_row_ratio))
        for rms, row in pairs:
            if rms is None or row is None:
                continue
            ratios.append(rms)
            excesses.append(row / leg.threshold["row"])
            if not decode:
                excesses.append(rms / leg.threshold["rms"])
    return max(ratios, default=None), max(excesses, default=None)


@dataclass(frozen=True)
class Summary:
    """The figures of many rows.

    Attributes:
        faults, harmless: how many rows of each kind there are; audited faults count in neither.
        detected, missed, false_alarms: how many.
        leg_right, block_right, sublayer_right: of the detected, how many.
        smallest_detected: the smallest of the detected rows' largest excesses.
        largest_clean: the largest excess of any harmless row.
        diagnosed, diagnosis_right, diagnosis_wrong: of the rows with a diagnosis, how many there
            are, how many name what is true, and how many name anything that is not.
    """

    faults: int
    harmless: int
    detected: int
    missed: int
    false_alarms: int
    leg_right: int
    block_right: int
    sublayer_right: int
    smallest_ratio: float | None
    smallest_detected: float | None
    largest_ratio: float | None
    largest_clean: float | None
    diagnosed: int
    diagnosis_right: int
    diagnosis_wrong: int

    @property
    def passed(self) -> bool:
        return not self.missed and not self.false_alarms and self.detected > 0


def summarise(rows: Sequence[Row]) -> Summary:
    """Counts the rows by what they show."""
    detected = [row for row in rows if row.verdict == DETECTED]
    quiet = [row for row in rows if row.verdict == QUIET]
    faults = [row for row in rows if row.verdict in (DETECTED, MISSED)]
    harmless = [row for row in rows if row.verdict in (QUIET, FALSE_ALARM)]
    diagnosed = [row for row in detected if row.diagnosis is not None]
    return Summary(
        faults=len(faults),
        harmless=len(harmless),
        detected=len(detected),
        missed=len(faults) - len(detected),
        false_alarms=len(harmless) - len(quiet),
        leg_right=sum(bool(row.leg_right) for row in detected),
        block_right=sum(bool(row.block_right) for row in detected),
        sublayer_right=sum(bool(row.sublayer_right) for row in detected),
        smallest_ratio=min((r.ratio for r in detected if r.ratio is not None), default=None),
        smallest_detected=min((r.excess for r in detected if r.excess is not None), default=None),
        largest_ratio=max((r.ratio for r in quiet if r.ratio is not None), default=None),
        largest_clean=max((r.excess for r in quiet if r.excess is not None), default=None),
        diagnosed=len(diagnosed),
        diagnosis_right=sum(row.diagnosis_right for row in diagnosed),
        diagnosis_wrong=sum(row.diagnosis_wrong for row in diagnosed),
    )
