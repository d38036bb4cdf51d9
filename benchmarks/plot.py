"""Draws curves and their straight lines as an SVG, with no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.line import Line

WIDTH, HEIGHT = 330, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 30, 40
LEGEND = 34
# Distinguishable in grey and by the colour-blind, too (Okabe and Ito's palette).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#333}"
    ".title{font-weight:600}.grid{stroke:#e4e4e4}.axis{stroke:#999}.tick{fill:#666;font-size:11px}"
)


@dataclass(frozen=True)
class Curve:
    """Measured points and the line through them."""

    name: str
    sizes: Sequence[float]
    costs: Sequence[float]
    line: Line


@dataclass(frozen=True)
class Panel:
    """One picture: the titles of its axes, and the curves."""

    x: str
    y: str
    curves: tuple[Curve, ...]


def ticks(largest: float, wanted: int = 5) -> list[float]:
    """Returns round numbers from 0 up to the first that is not below ``largest``.

    The step is 1, 2, 2.5 or 5 times a power of ten, and gives at most ``wanted`` steps.
    """
    if largest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(largest / wanted))
    steps = (factor * power for factor in (1, 2, 2.5, 5, 10))
    step = next(s for s in steps if largest <= wanted * s * (1 + 1e-9))
    count = math.ceil(largest / step - 1e-9)
    return [step * n for n in range(count + 1)]


def drawn(panels: Sequence[Panel], columns: int = 3) -> str:
    """Draws the whole picture: panels in rows, with one legend above."""
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(names)}
    columns = min(columns, len(panels)) or 1
    width = columns * WIDTH
    height = LEGEND + math.ceil(len(panels) / columns) * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *_legend(colours),
    ]
    for at, panel in enumerate(panels):
        x, y = at % columns * WIDTH, LEGEND + at // columns * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(panel, colours), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(colours: dict[str, str]) -> list[str]:
    parts, x = [], LEFT
    for name, colour in colours.items():
        parts.append(f'<circle cx="{x}" cy="19" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 9}" y="23">{escape(name)}</text>')
        x += 28 + 7 * len(name)
    told = "lines: least squares"
    return [*parts, f'<text class="tick" x="{x + 4}" y="23">{told}</text>']


def _panel(panel: Panel, colours: dict[str, str]) -> list[str]:
    xs = ticks(max(size for curve in panel.curves for size in curve.sizes))
    ys = ticks(max(cost for curve in panel.curves for cost in curve.costs))
    floor = HEIGHT - BOTTOM

    def across(size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * size / xs[-1]

    def up(cost: float) -> float:
        return floor - (floor - TOP) * cost / ys[-1]

    parts = [f'<text class="title" x="{LEFT}" y="{TOP - 10}">{escape(panel.y)}</text>']
    for value in ys:
        y = f"{up(value):.1f}"
        kind = "grid" if value else "axis"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">'
            f"{value:g}</text>"
        )
    for value in xs:
        parts.append(
            f'<text class="tick" x="{across(value):.1f}" y="{floor + 16}" text-anchor="middle">'
            f"{value:g}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(panel.x)}</text>'
    )
    for curve in panel.curves:
        colour, last = colours[curve.name], max(curve.sizes)
        ends = [(across(size), up(curve.line.at(size))) for size in (min(curve.sizes), last)]
        (x1, y1), (x2, y2) = ends
        parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="1.5" stroke-opacity="0.7"/>'
        )
        for size, cost in zip(curve.sizes, curve.costs, strict=True):
            parts.append(
                f'<circle cx="{across(size):.1f}" cy="{up(cost):.1f}" r="3.5" fill="{colour}">'
                f"<title>{escape(curve.name)}, {size:g} {escape(panel.x)}: {cost:.3g}</title>"
                "</circle>"
            )
    return parts
