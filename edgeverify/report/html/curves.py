"""Curves as inline SVG: error ratios over steps and positions, and the series of earlier runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeverify.core.results import FAIL, PASS, LegResult
from edgeverify.report.html.heat import place_of
from edgeverify.report.steps import step_results
from edgeverify.report.words import number, plural

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 30
RED, GREY, BLUE = "#c62828", "#b0b0b0", "#1565c0"
# Drawn where a ratio is infinite: a decade above everything that is not.
BEYOND = 10.0
DOTS = {PASS: "#2e7d32", FAIL: RED}


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: shown when pointed at.
        values: one per place on the x axis; None where there is none.
        colour: CSS.
        width: of the stroke.
        dots: outcomes, one per value, for a curve whose points are judged; or empty.
        radius: of the dots.
    """

    name: str
    values: tuple[float | None, ...]
    colour: str = GREY
    width: float = 1.0
    dots: tuple[str, ...] = ()
    radius: float = 4.0


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from ``low`` to ``high``."""

    low: float
    high: float

    def y(self, value: float) -> float:
        held = min(max(value, self.low), self.high)
        share = math.log(held / self.low) / math.log(self.high / self.low)
        return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)

    def decades(self) -> list[float]:
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        step = max(1, (last - first) // 6)
        return [10.0**power for power in range(first, last + 1, step)]


def figure(
    lines: Sequence[Line], allowed: float | None, labels: Sequence[str], **texts: str
) -> dict[str, Any]:
    """What the template draws: curves over a logarithmic axis.

    Args:
        lines: the curves; the later ones lie on top.
        allowed: where the dashed line is.
        labels: one for each place on the x axis.
        texts: ``title``; ``text``, below it; ``alt``, what the figure shows, for who cannot see it;
            ``x``, what the x axis is.
    """
    axis = _axis(lines, allowed)
    count = len(labels)
    steps = min(4, count - 1 or 1)
    places = sorted({round(n * (count - 1) / steps) for n in range(min(5, count))})
    return {
        "text": "",
        **texts,
        "size": f"{WIDTH} {HEIGHT}",
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "middle": WIDTH / 2,
        "bottom": HEIGHT,
        "decades": [(_at(axis.y(decade)), f"{decade:g}") for decade in axis.decades()],
        "allowed": [(_at(axis.y(allowed)), f"allowed {number(allowed)}")] if allowed else [],
        "curves": [_curve(line, axis) for line in lines],
        "labels": [(_at(_x(n, count)), _anchor(n, count), labels[n]) for n in places],
    }


def _anchor(place: int, count: int) -> str:
    """Of a label, so that those at the ends stay in the figure."""
    return "start" if place == 0 else "end" if place == count - 1 else "middle"


def _at(value: float) -> float:
    return round(value, 1)


def _axis(lines: Sequence[Line], allowed: float | None) -> Axis:
    values = [v for line in lines for v in line.values if v and math.isfinite(v)]
    values += [allowed] if allowed else []
    infinite = any(v == math.inf for line in lines for v in line.values if v is not None)
    low, high = min(values, default=0.1) / 1.5, max(values, default=10.0) * 1.5
    return Axis(low, high * BEYOND if infinite else high)


def _x(place: int, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (place / (count - 1) if count > 1 else 0.5)


def _curve(line: Line, axis: Axis) -> dict[str, Any]:
    """The curve, broken where there is no value; a lone value is a dot."""
    count = len(line.values)
    points = [
        None if value is None or math.isnan(value) else (_at(_x(n, count)), _at(axis.y(value)))
        for n, value in enumerate(line.values)
    ]
    drawn, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        drawn.append(f"{pen}{point[0]} {point[1]}")
        pen = "L"
    dots = [
        (*point, DOTS.get(outcome, "#f9a825"))
        for point, outcome in zip(points, line.dots, strict=False)
        if point is not None
    ]
    return {
        "name": line.name,
        "d": " ".join(drawn),
        "colour": line.colour,
        "width": line.width,
        "radius": f"{line.radius:g}",
        "dots": dots,
    }


def over_steps(leg: LegResult) -> dict[str, Any] | None:
    """The largest error ratio of each step, with its outcome as a dot."""
    steps = [step for step in step_results(leg) if step.step]
    values = tuple(step.worst("error_ratio") for step in steps)
    if len(steps) < 2 or all(value is None for value in values):
        return None
    line = Line("worst of the step", values, BLUE, 1.5, tuple(step.outcome for step in steps))
    names = [step.step for step in steps]
    alt = "largest error ratio of each step: " + ", ".join(
        f"{name} {number(value)}" for name, value in zip(names, values, strict=True)
    )
    allowed = leg.threshold.get("rms")
    return figure([line], allowed, names, title="Error ratio over the steps", alt=alt, x="step")


def over_positions(leg: LegResult) -> dict[str, Any] | None:
    """The largest row ratio of each block along the conversation; the faulty block stands out."""
    if not leg.along or max(len(row) for row in leg.along.values()) < 2:
        return None
    first = leg.first_divergence
    faulty = list(dict.fromkeys(_along_key(tap) for tap in first.isolated)) if first else []
    if first and not faulty:
        faulty = [_along_key(first.tap)]
    faulty = [place for place in faulty if place in leg.along][:3]
    lines = [Line(_name(place), row) for place, row in leg.along.items() if place not in faulty]
    lines += [Line(_name(place), leg.along[place], RED, 2.5) for place in faulty]
    count = max(len(row) for row in leg.along.values())
    end = _positions(leg, count)
    labels = [str(n * end // count) for n in range(count)]
    red = f"Red: {', '.join(_name(place) for place in faulty)}; grey: the rest. " if faulty else ""
    told = f"{red}Ratio at each position, one curve per block, in the run as a whole."
    return figure(
        lines,
        leg.threshold.get("row"),
        labels,
        title="Error ratio over the positions",
        text=told,
        alt=f"row ratio of {plural(len(leg.along), 'block')} over {plural(end, 'position')}."
        f" {told}",
        x="position in the conversation",
    )


def _positions(leg: LegResult, count: int) -> int:
    """How many positions the series stand for: a longer conversation is told in bins."""
    rows = [tap.worst_row for tap in leg.taps if tap.worst_row is not None]
    last = max(rows, default=0)
    return count * max(1, -(-(last + 1) // count))


def _along_key(tap: str) -> str:
    row, column = place_of(tap)
    if row.isdigit():
        return row
    return column if column == "embed" else "head"


def _name(place: str) -> str:
    return f"block {place}" if place.isdigit() else place


def sparkline(values: Sequence[float | None], outcomes: Sequence[str], alt: str) -> dict[str, Any]:
    """A small curve of earlier runs, oldest first, a dot for each outcome."""
    return figure([Line(alt, tuple(values), BLUE, 5.0, tuple(outcomes), 14.0)], None, (), alt=alt)
