"""What a growth is made of: the points of a curve, what is kept, what fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.growth import AXES, CURVES, Cost, Point, Points, main, panels, points_of, table


def cost_of(point: Point) -> Cost:
    n = point.layers * point.tokens
    return Cost(2.0 + n, 1.0 + n, int(1e9 + 1e6 * n))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """Stands in for the checks; lists those that were asked for."""
    asked: list[Point] = []

    def one(point: Point) -> Cost:
        asked.append(point)
        return cost_of(point)

    monkeypatch.setattr(growth, "in_a_process", one)
    return asked


def test_a_conversation_has_the_tokens_that_are_told() -> None:
    assert [point.tokens for point in AXES["tokens"]] == [42, 77, 146, 284, 560, 1113]
    assert [point.tokens for point in AXES["decode steps"]] == [77, 85, 101, 133, 197]


def test_an_axis_varies_one_thing() -> None:
    for axis, way in CURVES:
        points = points_of(axis, way)
        for name in ("layers", "prefill", "decode_steps", "way"):
            values = {getattr(point, name) for point in points}
            varied = {"layers": "layers", "tokens": "prefill", "decode steps": "decode_steps"}[axis]
            assert len(values) == (len(points) if name == varied else 1)
        assert len(points) >= 4


def test_what_was_measured_is_kept_and_not_measured_again(
    processes: list[Point], tmp_path: Path
) -> None:
    kept = tmp_path / "points.json"
    given = ["--only", "layers", "--only", "whole", "--repeat", "1", "--points", str(kept)]
    assert main(given) == 0
    assert [point.layers for point in processes] == [2, 4, 8, 16, 30]
    assert main(given) == 0
    assert len(processes) == 5
    given[5] = "2"
    assert main(given) == 0
    assert len(processes) == 10
    assert all(len(entry["costs"]) == 2 for entry in json.loads(kept.read_text()))


def test_linear_growth_passes_and_a_picture_is_drawn(
    processes: list[Point], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--repeat", "1", "--svg", str(tmp_path / "x.svg")]) == 0
    told = capsys.readouterr().out
    assert told.count("processor's s") == len(CURVES)
    assert "grows" not in told
    picture = (tmp_path / "x.svg").read_text()
    assert picture.count("<g ") == 6
    assert all(way in picture for way in growth.WAYS)


def test_growth_that_is_worse_than_linear_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def squared(point: Point) -> Cost:
        return Cost(1.0, float(point.layers), 10**6 * point.layers**2)

    monkeypatch.setattr(growth, "in_a_process", squared)
    assert main(["--only", "layers", "--only", "streamed", "--repeat", "1"]) == 1
    assert "layers, streamed, GB at most: grows 1.79, allowed 1.25" in capsys.readouterr().out


def test_the_clock_alone_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        growth, "in_a_process", lambda point: Cost(point.layers**3, point.layers, 10**9)
    )
    assert main(["--only", "layers", "--only", "whole", "--repeat", "1"]) == 0


def test_the_least_of_the_repeats_counts_and_the_noise_is_their_spread() -> None:
    points, first = Points(None), points_of("layers", "whole")
    for point in first:
        points._costs[point] = [Cost(3.0, 2.0, 10), Cost(2.0, 2.2, 9)]
    assert points.least(first[0]) == Cost(2.0, 2.0, 9)
    assert points.noise(first) == pytest.approx(0.1)
    told = table(points, "layers", "whole")
    assert [line.noise for line in told] == [None, pytest.approx(0.1), None]
    assert [panel.y for panel in panels(told)] == ["processor seconds", "peak memory, GB"]
