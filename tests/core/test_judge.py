"""A failure near the limits counts only if more float32 runs do not explain it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from edgeverify.core.judge import FLUSHED, REDRAWN, WIDEST, Baseline, judge_leg, judge_surely
from edgeverify.core.leg import AUTHORING, Leg
from edgeverify.core.noise import SMALLEST_NORMAL, floor_of
from edgeverify.core.results import FAIL, PASS, LegResult
from edgeverify.core.trace import Trace


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


KEY = "prefill.0/blocks.0.out"
ROWS, FLOOR = 16, 1e-6


def baseline(rng: np.random.Generator, redraw: Callable[[], Baseline] | None = None) -> Baseline:
    oracle = Trace({KEY: rng.normal(size=(1, ROWS, 8))})
    floor = {KEY: np.full(ROWS, FLOOR)}
    return Baseline(oracle, floor, floor, Trace(), redraw)


def off(against: Baseline, ratio: float) -> Trace:
    """A candidate whose rows are all off by ``ratio`` times the floor."""
    truth = against.oracle[KEY]
    return Trace({KEY: (truth * (1 + FLOOR * ratio)).astype(np.float32)})


def judging(candidate: Trace) -> Callable[[Baseline], LegResult]:
    return lambda against: judge_leg(Leg(AUTHORING), candidate, None, against, [KEY])


class Redraw:
    """Widens all floors by a factor, and counts how often it is asked."""

    def __init__(self, first: Baseline, factor: float) -> None:
        self.asked = 0
        self.first, self.factor = first, factor

    def __call__(self) -> Baseline:
        self.asked += 1
        floor = {key: rows * self.factor for key, rows in self.first.floor.items()}
        return replace(self.first, floor=floor, isolated_floor=floor, redraw=None)


@pytest.mark.parametrize(
    ("ratio", "factor", "outcome", "asked"),
    [
        (1.2, 3.0, PASS, 0),  # within the limits: nothing more is run
        (2.0, 3.0, PASS, 1),
        (2.0, 1.1, FAIL, 1),
        (1.5 * WIDEST * 0.9, 3.0, FAIL, 1),
        (1.5 * WIDEST * 1.2, 1e9, FAIL, 0),  # so far off that no run explains it
    ],
)
def test_more_runs_are_made_for_a_failure_that_they_might_explain(
    rng: np.random.Generator, ratio: float, factor: float, outcome: str, asked: int
) -> None:
    first = baseline(rng)
    redraw = Redraw(first, factor)
    result, used = judge_surely(judging(off(first, ratio)), replace(first, redraw=redraw))
    assert (result.outcome, redraw.asked) == (outcome, asked)
    assert (REDRAWN in result.notes) is bool(asked)
    assert used.floor[KEY][0] == pytest.approx(FLOOR * (factor if asked else 1))


def test_without_more_runs_the_first_verdict_stands(rng: np.random.Generator) -> None:
    first = baseline(rng)
    result, used = judge_surely(judging(off(first, 2.0)), first)
    assert result.outcome == FAIL
    assert used is first


@pytest.mark.parametrize(
    "wrong",
    [
        Trace(),
        Trace({KEY: np.zeros((1, ROWS, 7), np.float32)}),
        Trace({KEY: np.full((1, ROWS, 8), np.nan, np.float32)}),
    ],
    ids=["missing", "of another shape", "not a number"],
)
def test_what_is_no_ratio_is_not_asked_about_again(rng: np.random.Generator, wrong: Trace) -> None:
    first = baseline(rng)
    redraw = Redraw(first, 1e9)
    result, _ = judge_surely(judging(wrong), replace(first, redraw=redraw))
    assert (result.outcome, redraw.asked) == (FAIL, 0)


@pytest.mark.parametrize("scale", [SMALLEST_NORMAL / 8, SMALLEST_NORMAL * 1e-6])
def test_zeros_for_numbers_below_the_smallest_normal_one_are_told(
    rng: np.random.Generator, scale: float
) -> None:
    truth = np.clip(rng.normal(size=(1, ROWS, 8)), -4, 4) * scale
    floor = floor_of({KEY: truth}, {KEY: truth.astype(np.float32)})
    assert (floor[KEY] > FLUSHED).all()
    against = Baseline(Trace({KEY: truth}), floor, floor, Trace())
    for candidate in (np.zeros_like(truth), truth):
        result = judging(Trace({KEY: candidate.astype(np.float32)}))(against)
        assert result.outcome == PASS
        assert any("smallest normal number" in note for note in result.notes)
    wrong = judging(Trace({KEY: (10 * truth).astype(np.float32)}))(against)
    assert wrong.outcome == FAIL


def test_a_zero_among_normal_numbers_is_a_fault(rng: np.random.Generator) -> None:
    truth = rng.normal(size=(1, ROWS, 8))
    floor = floor_of({KEY: truth}, {KEY: truth.astype(np.float32)})
    given = truth.astype(np.float32)
    given[0, 3, 5] = 0
    result = judging(Trace({KEY: given}))(Baseline(Trace({KEY: truth}), floor, floor, Trace()))
    assert result.outcome == FAIL
    assert result.notes == ()
