"""The floor of several float32 runs: an estimate that knows how uncertain it is."""

from __future__ import annotations

import numpy as np
import pytest

from edgeverify.core import noise
from edgeverify.legs.redraw import floor_of_draws, larger


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def draws_of(
    rng: np.random.Generator, roundings: int, count: int = 12, rows: int = 24
) -> list[noise.Floor]:
    """Floors of single runs whose errors are each decided by so many independent roundings."""
    squares = (rng.normal(size=(count, roundings)) ** 2).mean(1)
    return [{"t": np.full(rows, 1e-6 * np.sqrt(square))} for square in squares]


@pytest.mark.parametrize("roundings", [1, 2, 3])
def test_few_roundings_widen_the_floor_of_draws(rng: np.random.Generator, roundings: int) -> None:
    """A further draw of one rounding is above 1.5 of the largest of twelve in 1 of 60 cases."""
    above = {"largest": 0, "predicted": 0}
    for _ in range(400):
        draws = draws_of(rng, roundings)
        largest, predicted = noise.widest(*draws)["t"], floor_of_draws(draws, 1.5)["t"]
        for further in draws_of(rng, roundings, 40):
            above["largest"] += bool(further["t"][0] > 1.5 * largest[0])
            above["predicted"] += bool(further["t"][0] > 1.5 * predicted[0])
    assert above["predicted"] <= 16000 * 1.5e-3
    assert above["predicted"] <= above["largest"] / 4 + 2


@pytest.mark.parametrize("roundings", [300, 3000])
def test_many_roundings_need_no_more_than_their_rms(
    rng: np.random.Generator, roundings: int
) -> None:
    draws = draws_of(rng, roundings)
    typical = np.sqrt(np.mean([draw["t"][0] ** 2 for draw in draws]))
    np.testing.assert_allclose(floor_of_draws(draws, 1.5)["t"], typical)


def test_lucky_rows_keep_their_share_of_the_floor(rng: np.random.Generator) -> None:
    draws = [{"t": 1e-6 * np.abs(rng.normal(size=400))} for _ in range(12)]
    found = floor_of_draws(draws, 1.5)["t"]
    typical = np.sqrt(np.mean([np.mean(draw["t"] ** 2) for draw in draws]))
    assert noise.rms(found) == pytest.approx(typical)
    np.testing.assert_allclose(found / found[0], noise.widest(*draws)["t"] / draws_max(draws)[0])


def draws_max(draws: list[noise.Floor]) -> np.ndarray:
    return np.max([draw["t"] for draw in draws], axis=0)


def test_both_floors_are_combined_by_their_rms(rng: np.random.Generator) -> None:
    first = {"t": 1e-6 * np.abs(rng.normal(size=50)), "own": np.ones(3)}
    drawn = {"t": 3e-6 * np.abs(rng.normal(size=50)), "other": np.ones(3)}
    found = larger(first, drawn)
    assert found.keys() == first.keys()
    assert noise.rms(found["t"]) == pytest.approx(noise.rms(drawn["t"]))
    both = np.maximum(first["t"], drawn["t"])
    np.testing.assert_allclose(found["t"] / both, found["t"][0] / both[0])
    zero = {"t": np.zeros(4)}
    np.testing.assert_array_equal(larger(zero, zero)["t"], 0)


def test_draws_that_do_not_differ_are_their_own_floor() -> None:
    draws = [{"t": np.full(3, 2e-7), "exact": np.zeros(3)}] * 4
    found = floor_of_draws(draws, 1.5)
    np.testing.assert_array_equal(found["t"], draws[0]["t"])
    np.testing.assert_array_equal(found["exact"], 0)
