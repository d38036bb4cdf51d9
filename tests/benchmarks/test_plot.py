"""The picture: well-formed, every point and line where it belongs."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.line import Line, fit
from benchmarks.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, Panel, drawn, ticks

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (10, [0, 2, 4, 6, 8, 10]),
        (30, [0, 10, 20, 30]),
        (1113, [0, 250, 500, 750, 1000, 1250]),
        (0.9, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, [0, 1]),
    ],
)
def test_ticks_are_round_and_reach_the_largest(largest: float, expected: list[float]) -> None:
    assert ticks(largest) == pytest.approx(expected)


def picture(*panels: Panel) -> ElementTree.Element:
    return ElementTree.fromstring(drawn(panels))


def panel(name: str = "whole", x: str = "layers") -> Panel:
    return Panel(x, "s", (Curve(name, (0, 5, 10), (0.0, 5.0, 10.0), Line(0.0, 1.0, 1.0)),))


def test_points_lie_between_the_axes_at_their_values() -> None:
    dots = [
        dot for dot in picture(panel()).iter(f"{SVG}circle") if dot.find(f"{SVG}title") is not None
    ]
    at = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in dots]
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    middle = (LEFT + right) / 2, (TOP + floor) / 2
    assert at == [(LEFT, floor), pytest.approx(middle), (right, TOP)]


def test_the_line_is_the_fit_not_the_points() -> None:
    curve = Curve("whole", (0, 5, 10), (0.0, 9.0, 10.0), fit([0, 10], [0.0, 10.0]))
    lines = [
        x for x in picture(Panel("n", "s", (curve,))).iter(f"{SVG}line") if "stroke" in x.attrib
    ]
    ends = [float(lines[0].attrib[name]) for name in ("x1", "y1", "x2", "y2")]
    assert ends == [LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, TOP]


def test_a_curve_has_one_colour_in_all_panels_and_the_legend() -> None:
    drawn_ = picture(panel("whole"), panel("streamed", "tokens"), panel("whole", "steps"))
    fills = [dot.attrib["fill"] for dot in drawn_.iter(f"{SVG}circle")]
    legend, dots = fills[:2], fills[2:]
    assert len(set(legend)) == 2
    assert dots == [legend[0]] * 3 + [legend[1]] * 3 + [legend[0]] * 3


def test_panels_stand_in_rows() -> None:
    groups = [g.attrib["transform"] for g in picture(*[panel()] * 4).iter(f"{SVG}g")]
    across = [text.removeprefix("translate(").split()[0] for text in groups]
    assert across == ["0", str(WIDTH), str(2 * WIDTH), "0"]
    assert len(set(groups)) == 4


def test_names_are_escaped() -> None:
    assert "a&lt;b" in drawn([panel("a<b")])
    picture(panel("a<b"))
