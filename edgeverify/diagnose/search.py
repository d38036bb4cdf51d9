"""Which of the known faults gives what the port gave.

A repair is tried the other way round, because the code of a port may offer nothing to put it in:
an independent model of the sublayer has to reproduce the oracle first; then the fault is put into
it, and it has to give the port's own output, row by row. Where it does, undoing that one thing is
what brings the port back, and how far it is from the port is the ratio that the repair leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from edgeverify.core import noise
from edgeverify.core.compare import Thresholds, thresholds
from edgeverify.diagnose import generic, shapes
from edgeverify.diagnose.fault import Change, Sublayer
from edgeverify.diagnose.scene import Scene, Seen

# The oracle's own rounding is 1e-16 an operation; a wrong description is off by 1e-6 and more
# (1e-6 of an epsilon, say). Measured: right ones are within 3e-13 on the tiny ports.
EXACT = 1e-9
# Rounding may grow where the fault makes the sublayer less well-behaved; past this many times the
# floor of the right one it is no longer worth measuring that.
WORTH_A_LOOK = 1e4
SMALLEST = 1e-30
# Two explanations are told apart by their ratios only if these differ by more than this factor.
AS_GOOD = 1.15


@dataclass(frozen=True)
class Cause:
    """A change that explains what the port gave at one tap.

    Attributes:
        tap: without its step.
        kind: of the change.
        text: ``what the port does → the repair``.
        ratio: the error ratio that is left.
        others: texts of other kinds of change that explain it as well.
    """

    tap: str
    kind: str
    text: str
    ratio: float
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What came of one tap.

    Attributes:
        tap: without its step.
        cause: or None.
        tried: how many repairs were tried; 0 where the original's sublayer is not a known one.
    """

    tap: str
    cause: Cause | None
    tried: int


@dataclass(frozen=True)
class _Fit:
    change: Change[Any]
    ratio: float
    scope: str


def search(
    scene: Scene, sublayer: Sublayer[Any] | None, seen: Seen, *, kind: str = "", fitted: bool = True
) -> Result:
    """Looks for the cause at one tap.

    Changes that are known beforehand come first. Only where none of them fits, numbers are fitted
    to what the port gave, and only after these, differences that need no model of the sublayer.

    Args:
        scene: the port.
        sublayer: the stretch before the tap, or None where there is no model of it.
        seen: the tap.
        kind: only changes of this kind, and the first that fits is enough.
        fitted: whether numbers are fitted.
    """
    right = None if sublayer is None else _right(scene, sublayer, seen)
    phases = [_anywhere(scene, seen)]
    if sublayer is not None and right is not None:
        known = partial(_simulated, scene, sublayer, seen)
        arguments = right, seen.port, seen.rows
        phases.insert(0, known(sublayer.changes(*arguments)))
        if fitted:
            phases.insert(1, known(sublayer.fitted(*arguments)))
    if kind in generic.KINDS:
        phases = phases[-1:]
    fits: list[_Fit] = []
    tried = 0
    for phase in phases:
        for change, simulate in _whatever_comes(phase):
            if kind and change.kind != kind:
                continue
            tried += 1
            fit = _fit(change, simulate, seen)
            if fit is not None:
                fits.append(fit)
                if kind and not fit.scope:
                    break
        if fits:
            break
    return Result(seen.tap, _best(fits, seen.tap), tried)


def _anywhere(scene: Scene, seen: Seen) -> Iterator[generic.Simulation]:
    """The generic changes of all rows, then those of the rows that differ alone."""
    yield from generic.changes(scene, seen)
    errors = seen.errors()
    bad = errors.ratios(errors.rms_floor) > thresholds("isolated").row
    for part, told in ((seen.failing, _scope(seen)), (bad, _positions(seen, bad))):
        if part.any() and not part.all() and told:
            for change, simulate in generic.changes(scene, seen.only(part)):
                text = _with_scope(change.text, told)
                yield replace(change, text=text), _elsewhere(seen, part, simulate)


def _elsewhere(
    seen: Seen, part: np.ndarray, simulate: Callable[[bool], torch.Tensor]
) -> Callable[[bool], torch.Tensor]:
    """The simulation in some rows, and the right values in the others."""

    def both(narrow: bool) -> torch.Tensor:
        whole = seen.truth.float().double() if narrow else seen.truth.clone()
        whole[torch.from_numpy(part)] = simulate(narrow)
        return whole

    return both


def _positions(seen: Seen, bad: np.ndarray) -> str:
    """Which positions, if they are few."""
    positions = sorted({int(position) for position in seen.positions[bad]})
    few = len(positions) <= shapes.FEW and not seen.tap.startswith("kv.")
    return f" at positions {', '.join(map(str, positions))}" if few else ""


def _simulated(
    scene: Scene, sublayer: Sublayer[Any], seen: Seen, changes: Iterator[Change[Any]]
) -> Iterator[generic.Simulation]:
    """Each change with what it gives, in float64 or in float32."""
    rounded, single = scene.inputs(rounded=True), scene.inputs(torch.float32)

    def simulation(spec: Any) -> Callable[[bool], torch.Tensor]:
        return lambda narrow: sublayer.compute(spec, single if narrow else rounded)[
            seen.rows
        ].double()

    for change in changes:
        yield change, simulation(change.spec)


def _whatever_comes(phase: Iterator[generic.Simulation]) -> Iterator[generic.Simulation]:
    """The changes until one cannot be made for this port: that one does not apply."""
    try:
        yield from phase
    except Exception:
        return


def _right(scene: Scene, sublayer: Sublayer[Any], seen: Seen) -> Any | None:
    """The first description that gives the oracle's values."""
    inputs = scene.inputs()
    try:
        for spec in sublayer.rights():
            try:
                given = sublayer.compute(spec, inputs)[seen.rows]
            except Exception:  # a description that does not fit this family's shapes
                continue
            if given.shape != seen.truth.shape:
                continue
            scale = seen.truth.flatten(1).norm(dim=1).clamp_min(SMALLEST)
            error = (given - seen.truth).flatten(1).norm(dim=1) / scale
            if bool((error < EXACT).all()):
                return spec
    except Exception:  # the family is none of the known ones
        return None
    return None


def _fit(change: Change[Any], simulate: Any, seen: Seen) -> _Fit | None:
    try:
        wide = simulate(False)
        if wide.shape != seen.port.shape or not bool(torch.isfinite(wide).all()):
            return None
        ratio = _judge(seen, wide, lambda: simulate(True))
        if ratio is not None:
            return _Fit(change, ratio, "")
        if seen.failing.all():
            return None
        part = torch.from_numpy(seen.failing)
        ratio = _judge(seen.only(seen.failing), wide[part], lambda: simulate(True)[part])
    except Exception:  # a repair that cannot be made for this port does not apply
        return None
    return None if ratio is None else _Fit(change, ratio, _scope(seen))


def _scope(seen: Seen) -> str:
    """Which steps fail, where some do not."""
    if seen.failing.all():
        return ""
    if np.array_equal(seen.failing, seen.decode):
        return " in decode steps"
    if np.array_equal(seen.failing, ~seen.decode):
        return " in prefill steps"
    return " in the failing steps"


def _judge(seen: Seen, wide: torch.Tensor, single: Any) -> float | None:
    """The error ratio of the port against a simulated fault, or None past the limits."""
    limits: Thresholds = thresholds("isolated")
    scale = wide.flatten(1).norm(dim=1).clamp_min(SMALLEST)
    error = ((seen.port - wide).flatten(1).norm(dim=1) / scale).numpy()
    floor = seen.floor
    if not _within(noise.RowErrors(error, floor * WORTH_A_LOOK + 1e-7 * WORTH_A_LOOK), limits):
        return None
    narrow = ((single() - wide).flatten(1).norm(dim=1) / scale).numpy()
    rows = noise.RowErrors(error, np.maximum(floor, narrow))
    return rows.error_ratio if _within(rows, limits) else None


def _within(rows: noise.RowErrors, limits: Thresholds) -> bool:
    worst = float(rows.ratios(rows.rms_floor).max())
    return rows.error_ratio <= limits.rms_over(len(rows.error)) and worst <= limits.row


def _best(fits: list[_Fit], tap: str) -> Cause | None:
    if not fits:
        return None
    fits = [fit for fit in fits if fit.change.held] or fits
    fits = [fit for fit in fits if not fit.scope] or fits  # what holds of every step says more
    smallest = min(fit.ratio for fit in fits)
    # The earliest of those that are as good: the changes come by how usual they are.
    good = [fit for fit in fits if fit.ratio <= max(smallest * AS_GOOD, smallest + 0.05)]
    first = good[0]
    others = {
        fit.change.kind: fit for fit in reversed(good) if fit.change.kind != first.change.kind
    }
    told = lambda fit: _with_scope(fit.change.text, fit.scope)  # noqa: E731
    return Cause(
        tap, first.change.kind, told(first), first.ratio, tuple(told(f) for f in others.values())
    )


def _with_scope(text: str, scope: str) -> str:
    what, arrow, repair = text.partition(" → ")
    return f"{what}{scope}{arrow}{repair}"
