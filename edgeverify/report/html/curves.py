"""Curves as inline SVG: error ratios over steps and positions, and the series of earlier runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

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


def chart(
    lines: Sequence[Line], allowed: float | None, labels: Sequence[str], alt: str, *, x: str
) -> str:
    """A figure with a logarithmic axis.

    Args:
        lines: the curves; the later ones lie on top.
        allowed: where the dashed line is.
        labels: one for each place on the x axis.
        alt: what the figure shows, for who cannot see it.
        x: what the x axis is.
    """
    axis = _axis(lines, allowed)
    parts = []
    for decade in axis.decades():
        y = axis.y(decade)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e5e5"/>'
            f'<text x="{LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{decade:g}</text>'
        )
    if allowed:
        y = axis.y(allowed)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#000"'
            ' stroke-dasharray="5 3"/>'
            f'<text x="{WIDTH - RIGHT}" y="{y - 3:.1f}" text-anchor="end">'
            f"allowed {number(allowed)}</text>"
        )
    parts += [_path(line, axis) for line in lines]
    count = len(labels)
    shown = sorted({round(n * (count - 1) / min(4, count - 1 or 1)) for n in range(5)} & set(
        range(count)))  # fmt: skip
    for place in shown:
        anchor = "start" if place == 0 else "end" if place == count - 1 and count > 1 else "middle"
        parts.append(
            f'<text x="{_x(place, count):.1f}" y="{HEIGHT - 14}" text-anchor="{anchor}">'
            f"{escape(labels[place])}</text>"
        )
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 2}" text-anchor="middle">{escape(x)}</text>')
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(alt)}</title>'
        f"{''.join(parts)}</svg></figure>"
    )


def _axis(lines: Sequence[Line], allowed: float | None) -> Axis:
    values = [v for line in lines for v in line.values if v and math.isfinite(v)]
    values += [allowed] if allowed else []
    infinite = any(v == math.inf for line in lines for v in line.values if v is not None)
    low, high = min(values, default=0.1) / 1.5, max(values, default=10.0) * 1.5
    return Axis(low, high * BEYOND if infinite else high)


def _x(place: int, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (place / (count - 1) if count > 1 else 0.5)


def _path(line: Line, axis: Axis) -> str:
    """The curve, broken where there is no value; a lone value is a dot."""
    count = len(line.values)
    points = [
        None if value is None or math.isnan(value) else (_x(n, count), axis.y(value))
        for n, value in enumerate(line.values)
    ]
    drawn, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        drawn.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "L"
    dots = "".join(
        f'<circle cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="{line.radius:g}"'
        f' fill="{DOTS.get(outcome, "#f9a825")}"/>'
        for point, outcome in zip(points, line.dots, strict=False)
        if point is not None
    )
    return (
        f'<g><title>{escape(line.name)}</title><path d="{" ".join(drawn)}" fill="none"'
        f' stroke="{line.colour}" stroke-width="{line.width}"'
        f' stroke-linecap="round"/>{dots}</g>'
    )


def over_steps(leg: LegResult) -> str:
    """The largest error ratio of each step, with its outcome as a dot."""
    steps = [step for step in step_results(leg) if step.step]
    values = tuple(step.worst("error_ratio") for step in steps)
    if len(steps) < 2 or all(value is None for value in values):
        return ""
    line = Line("worst of the step", values, BLUE, 1.5, tuple(step.outcome for step in steps))
    names = [step.step for step in steps]
    alt = "largest error ratio of each step: " + ", ".join(
        f"{name} {number(value)}" for name, value in zip(names, values, strict=True)
    )
    figure = chart([line], leg.threshold.get("rms"), names, alt, x="step")
    return "<h3>Error ratio over the steps</h3>" + figure


def over_positions(leg: LegResult) -> str:
    """The largest row ratio of each block along the conversation; the faulty block stands out."""
    if not leg.along or max(len(row) for row in leg.along.values()) < 2:
        return ""
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
    alt = f"row ratio of {plural(len(leg.along), 'block')} over {plural(end, 'position')}. {told}"
    figure = chart(lines, leg.threshold.get("row"), labels, alt, x="position in the conversation")
    return f"<h3>Error ratio over the positions</h3><p class='muted'>{escape(told)}</p>{figure}"


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


def sparkline(values: Sequence[float | None], outcomes: Sequence[str], alt: str) -> str:
    """A small curve of earlier runs, oldest first, a dot for each outcome."""
    line = Line(alt, tuple(values), BLUE, 5.0, tuple(outcomes), 14.0)
    axis = _axis([line], None)
    # Drawn small: only the height of the curve matters.
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="spark" role="img"'
        f' style="width: 12rem"><title>{escape(alt)}</title>{_path(line, axis)}</svg>'
    )
