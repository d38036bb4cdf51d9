"""A straight line is told from a steeper curve."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.growth import AXES, LIMIT, size_of
from benchmarks.line import fit, growth


def test_a_line_is_found_as_it_is() -> None:
    line = fit([1, 2, 4], [5.0, 7.0, 11.0])
    assert (line.start, line.slope, line.r2) == pytest.approx((3.0, 2.0, 1.0))
    assert line.at(10) == pytest.approx(23.0)


def test_the_share_of_the_variance_that_a_line_explains() -> None:
    # The least squares of (0, 0), (1, 1), (2, 0) is the level 1/3, which explains nothing.
    line = fit([0, 1, 2], [0.0, 1.0, 0.0])
    assert (line.start, line.slope, line.r2) == pytest.approx((1 / 3, 0.0, 0.0))
    assert fit([1, 2], [4.0, 4.0]).r2 == 1


def test_a_cost_that_is_linear_grows_by_one_in_any_order() -> None:
    assert growth([8, 1, 4], [19.0, 5.0, 11.0]) == pytest.approx(1.0)


@pytest.mark.parametrize(("sizes", "costs"), [([1, 1], [2.0, 3.0]), ([1, 2], [2.0]), ([], [])])
def test_no_line_through_one_point(sizes: list[float], costs: list[float]) -> None:
    with pytest.raises(ValueError, match="no line through"):
        fit(sizes, costs)


@pytest.mark.parametrize("axis", AXES)
def test_the_limit_parts_linear_from_quadratic_growth_at_the_sizes_measured(axis: str) -> None:
    sizes = [size_of(axis, point) for point in AXES[axis]]
    linear = [20 + n for n in sizes]
    assert growth(sizes, linear) == pytest.approx(1.0)
    assert growth(sizes, [n**2 for n in sizes]) > 1.5
    # Half of the largest cost from a quadratic part is seen, too.
    half = [n / sizes[-1] + (n / sizes[-1]) ** 2 for n in sizes]
    assert growth(sizes, half) > LIMIT
    # The noise of a shared machine is not.
    draw = np.random.default_rng(0)
    for _ in range(100):
        noisy = [cost * draw.uniform(0.95, 1.05) for cost in linear]
        assert growth(sizes, noisy) < LIMIT
