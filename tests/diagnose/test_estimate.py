"""Numbers and orders that are read off a port's output, and how weights are compared."""

from __future__ import annotations

import pytest
import torch

from edgeverify.diagnose import compare_weights, estimate
from edgeverify.diagnose.fault import apart, number

torch.manual_seed(0)
X = torch.randn(12, 6, dtype=torch.float64)
W = torch.randn(4, 5)
STATE = {"a.weight": W, "b.weight": torch.randn(4, 5)}


def test_a_number_is_found_from_a_distant_start() -> None:
    def compute(scale: float) -> torch.Tensor:
        return torch.tanh(X * scale)

    found = estimate.fit(compute, compute(1.234), (0.1, 10.0))
    assert found == pytest.approx(1.234, rel=1e-7)


def test_no_start_that_can_be_computed_gives_none() -> None:
    assert estimate.fit(lambda value: X * float("nan"), X, (1.0, 2.0)) is None


def test_the_factor_is_that_of_least_squares() -> None:
    assert estimate.factor(1.01 * X, X) == pytest.approx(1.01, rel=1e-12)


def test_channels_are_traced_to_their_sources() -> None:
    order = [3, 0, 0, 5]
    assert estimate.sources(X[:, order], X, 1e-3) == order
    assert estimate.sources(X[:, order] + 0.1 * X[:, :4], X, 1e-3) is None


def first_row_doubled() -> torch.Tensor:
    other = W.clone()
    other[0] *= 2
    return other


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (torch.zeros(4, 5), "all zeros (never loaded?)"),
        (torch.ones(4, 5), "all ones (never loaded?)"),
        (STATE["b.weight"].clone(), "b.weight"),
        (W.bfloat16().float(), "rounded to bfloat16"),
        (W[[1, 0, 2, 3]], "its rows in another order"),
        (W[:, [1, 0, 2, 3, 4]], "its columns in another order"),
        (3 * W, "3 times"),
        (first_row_doubled(), "5 of 20 values differ, all in row 0"),
        (W[:3], "shape (3, 5)"),
    ],
)
def test_a_weight_is_told_by_what_it_is(held: torch.Tensor, told: str) -> None:
    assert compare_weights.difference(held, W, "a.weight", STATE) == f"{told} → a.weight"


def test_a_square_weight_may_be_transposed() -> None:
    square = torch.randn(4, 4)
    told = compare_weights.difference(square.T, square, "o", {"o": square})
    assert told == "transposed → o"


def test_differs_asks_for_two_tensors_of_one_shape() -> None:
    assert compare_weights.differs(W, 2 * W)
    assert not compare_weights.differs(W, W.clone())
    assert not compare_weights.differs(None, W)
    assert not compare_weights.differs(W[:2], W)


def test_numbers_are_short_but_told_apart() -> None:
    assert [number(v) for v in (5e5, 1e6, 1e-6, 0.0625)] == ["500000", "1000000", "1e-06", "0.0625"]
    assert apart(10000.0, 5e5) == ("10000", "500000")
    assert apart(1.0000001, 1.0) == ("1.0000001", "1")
