"""Searches for the known fault that reproduces the port's output.

A repair is tried in reverse, because a port's code may have no place to insert it. First an
independent model of the sublayer has to reproduce the oracle. Then the fault is put into that
model, and the model has to reproduce the port's own output, row by row. If it does, undoing that
one change repairs the port, and the distance between the two is the ratio that the repair leaves.
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

# The oracle's own rounding is 1e-16 per operation; a wrong description is off by 1e-6 and more
# (e.g. 1e-6 from an epsilon). Measured: correct descriptions are within 3e-13 on the tiny ports.
EXACT = 1e-9
# Rounding errors may grow if the fault makes the sublayer ill-conditioned. Above this many times
# the correct sublayer's floor, that growth is no longer measured.
WORTH_A_LOOK = 1e4
SMALLEST = 1e-30
# Ratios separate two explanations only if they differ by more than this factor.
AS_GOOD = 1.15


@dataclass(frozen=True)
class Cause:
    """A change that explains the port's output at one tap.

    Attributes:
        tap: without its step.
        kind: the change's kind.
        text: ``what the port does → the repair``.
        ratio: the remaining error ratio.
        others: texts of other kinds of change that explain it equally well.
    """

    tap: str
    kind: str
    text: str
    ratio: float
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """The search result of one tap.

    Attributes:
        tap: without its step.
        cause: the cause, or None.
        tried: how many repairs were tried; 0 if the original's sublayer is not a known one.
        stopped: whether the time was up before all were tried.
    """

    tap: str
    cause: Cause | None
    tried: int
    stopped: bool = False


@dataclass(frozen=True)
class _Fit:
    change: Change[Any]
    ratio: float
    scope: str


def search(
    scene: Scene,
    sublayer: Sublayer[Any] | None,
    seen: Seen,
    few: Seen,
    *,
    kind: str = "",
    fitted: bool = True,
) -> Result:
    """Searches for the cause at one tap.

    Changes that are known beforehand come first. Only if none of them fits, numbers are fitted to
    the port's output; only after these come differences that need no model of the sublayer.

    Args:
        scene: the port.
        sublayer: the sublayer before the tap, or None if there is no model of it.
        seen: the tap.
        few: the rows of it that repairs of the sublayer are tried on; what fits them is tried on
            all rows before it counts.
        kind: tries only changes of this kind, and stops at the first that fits.
        fitted: whether numbers are fitted.
    """
    right = None if sublayer is None else _right(scene, sublayer, seen)
    phases = [(_anywhere(scene, seen), seen)]
    if sublayer is not None and right is not None:
        known = partial(_simulated, scene, sublayer)
        arguments = right, few.port, few.rows
        phases.insert(0, (known(few, sublayer.changes(*arguments)), few))
        if fitted:
            phases.insert(1, (known(few, sublayer.fitted(*arguments)), few))
    if kind in generic.KINDS:
        phases = phases[-1:]
    fits: list[_Fit] = []
    tried, stopped = 0, False
    for phase, shown in phases:
        for change, simulate in _whatever_comes(phase):
            if stopped := scene.clock.is_up():
                break
            if kind and change.kind != kind:
                continue
            tried += 1
            fit = _fit(change, simulate, shown)
            if fit is not None and sublayer is not None and shown is not seen:
                fit = _fit(change, _simulation(scene, sublayer, seen)(change.spec), seen)
            if fit is not None:
                fits.append(fit)
                if kind and not fit.scope:
                    break
        if fits or stopped:
            break
    return Result(seen.tap, _best(fits, seen.tap), tried, stopped)


def _anywhere(scene: Scene, seen: Seen) -> Iterator[generic.Simulation]:
    """Yields the generic changes of all rows, then those of only the rows that differ."""
    yield from generic.changes(scene, seen)
    bad = seen.bad()
    for part, told in ((seen.failing, _scope(seen)), (bad, _positions(seen, bad))):
        if part.any() and not part.all() and told:
            for change, simulate in generic.changes(scene, seen.only(part)):
                text = _with_scope(change.text, told)
                yield replace(change, text=text), _elsewhere(seen, part, simulate)


def _elsewhere(
    seen: Seen, part: np.ndarray, simulate: Callable[[bool], torch.Tensor]
) -> Callable[[bool], torch.Tensor]:
    """Simulates in some rows, and keeps the correct values in the others."""

    def both(narrow: bool) -> torch.Tensor:
        whole = seen.truth.float().double() if narrow else seen.truth.clone()
        whole[torch.from_numpy(part)] = simulate(narrow)
        return whole

    return both


def _positions(seen: Seen, bad: np.ndarray) -> str:
    """Lists the positions, if there are few."""
    positions = sorted({int(position) for position in seen.positions[bad]})
    few = len(positions) <= shapes.FEW and not seen.tap.startswith("kv.")
    return f" at positions {', '.join(map(str, positions))}" if few else ""


def _simulated(
    scene: Scene, sublayer: Sublayer[Any], seen: Seen, changes: Iterator[Change[Any]]
) -> Iterator[generic.Simulation]:
    """Yields each change with a function that simulates it in float64 or in float32."""
    simulation = _simulation(scene, sublayer, seen)
    for change in changes:
        yield change, simulation(change.spec)


def _simulation(
    scene: Scene, sublayer: Sublayer[Any], seen: Seen
) -> Callable[[Any], Callable[[bool], torch.Tensor]]:
    """Returns a description → a function that computes the seen rows in float64 or in float32."""
    rounded = scene.inputs(rounded=True, wanted=seen.rows)
    single = scene.inputs(torch.float32, wanted=seen.rows)

    def simulation(spec: Any) -> Callable[[bool], torch.Tensor]:
        return lambda narrow: sublayer.compute(spec, single if narrow else rounded)[
            seen.rows
        ].double()

    return simulation


def _whatever_comes(phase: Iterator[generic.Simulation]) -> Iterator[generic.Simulation]:
    """Yields changes until one cannot be made for this port, because that one does not apply."""
    try:
        yield from phase
    except Exception:
        return


def _right(scene: Scene, sublayer: Sublayer[Any], seen: Seen) -> Any | None:
    """Returns the first description that gives the oracle's values."""
    inputs = scene.inputs(wanted=seen.rows)
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
    except Exception:  # the family is not a known one
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
    """Names the steps that fail, if only some do."""
    if seen.failing.all():
        return ""
    if np.array_equal(seen.failing, seen.decode):
        return " in decode steps"
    if np.array_equal(seen.failing, ~seen.decode):
        return " in prefill steps"
    return " in the failing steps"


def _judge(seen: Seen, wide: torch.Tensor, single: Any) -> float | None:
    """Returns the port's error ratio against a simulated fault, or None above the limits."""
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
    fits = [fit for fit in fits if not fit.scope] or fits  # one for all steps says more
    smallest = min(fit.ratio for fit in fits)
    # The earliest of the equally good ones is taken: more usual changes come first.
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
