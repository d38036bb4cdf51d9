"""The noise floor and what is measured against it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeverify.core import noise
from edgeverify.core.noise import RowErrors

ULP = 2.0**-24  # the largest relative error of rounding to float32


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def shifted(oracle: np.ndarray, relative: float) -> np.ndarray:
    """Each row moved by ``relative`` of its own length."""
    return oracle * (1 + relative)


def test_the_floor_is_the_largest_error_of_several_runs_in_each_row(
    rng: np.random.Generator,
) -> None:
    oracle = {"a": rng.normal(size=(1, 3, 8))}
    sizes = np.array([[1e-5, 2e-5], [4e-5, 3e-5], [5e-5, 1e-5]])
    runs = [{"a": oracle["a"] * (1 + sizes[None, :, i, None])} for i in (0, 1)]
    floor = noise.floor_of(oracle, *runs)
    np.testing.assert_allclose(floor["a"], [2e-5, 4e-5, 5e-5], rtol=1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(1e-20, 1e20))
def test_the_floor_is_never_below_rounding_of_the_oracle(seed: int, scale: float) -> None:
    oracle = {"a": np.random.default_rng(seed).normal(size=(1, 4, 6)) * scale}
    exact = {"a": oracle["a"].copy()}  # a float32 run cannot be this lucky
    rounding = oracle["a"].astype(np.float32).astype(np.float64) - oracle["a"]
    want = np.linalg.norm(rounding[0], axis=1) / np.linalg.norm(oracle["a"][0], axis=1)
    np.testing.assert_allclose(noise.floor_of(oracle, exact)["a"], want, rtol=1e-9)
    assert (want > 0).all()
    assert (want <= ULP).all()


def test_a_value_that_float32_holds_has_no_floor() -> None:
    lookup = {"embed": np.array([[[1.0, 2.0], [0.5, -3.0]]])}
    run = {"embed": lookup["embed"].astype(np.float32)}
    np.testing.assert_array_equal(noise.floor_of(lookup, run)["embed"], [0.0, 0.0])


def test_the_floor_has_the_taps_that_all_runs_have(rng: np.random.Generator) -> None:
    oracle = {key: rng.normal(size=(1, 2, 3)) for key in ("a", "b", "c")}
    first = {key: shifted(oracle[key], 1e-5) for key in ("a", "b")}
    second = {key: shifted(oracle[key], 1e-5) for key in ("b", "c")}
    assert set(noise.floor_of(oracle, first, second)) == {"b"}


def test_rows_are_positions_whatever_follows_them(rng: np.random.Generator) -> None:
    heads = {"kv.0.k": rng.normal(size=(1, 5, 2, 3))}
    run = {"kv.0.k": heads["kv.0.k"].copy()}
    run["kv.0.k"][0, 4] *= 1.5
    floor = noise.floor_of(heads, run)["kv.0.k"]
    assert floor.shape == (5,)
    assert floor[4] == pytest.approx(0.5)
    assert (floor[:4] < ULP).all()


def test_rows_of_zeros_are_measured_absolutely() -> None:
    oracle = np.zeros((1, 3, 4))
    floor = noise.floor_of({"a": oracle}, {"a": oracle.astype(np.float32)})["a"]
    np.testing.assert_array_equal(floor, np.zeros(3))
    candidate = np.zeros((1, 3, 4), np.float32)
    candidate[0, 1, 2] = 1e-3
    errors = noise.measure(candidate, oracle, floor)
    np.testing.assert_allclose(errors.error, [0, 1e-3, 0], rtol=1e-6)
    np.testing.assert_array_equal(errors.ratios(errors.rms_floor), [0, np.inf, 0])
    assert errors.error_ratio == np.inf
    assert noise.measure(oracle, oracle, floor).error_ratio == 0.0


def test_widest_takes_the_largest_of_each_row_and_the_first_ones_keys() -> None:
    first = {"a": np.array([1.0, 5.0]), "b": np.array([1.0])}
    second = {"a": np.array([2.0, 4.0]), "c": np.array([9.0])}
    third = {"a": np.array([0.0, 6.0]), "b": np.array([3.0])}
    merged = noise.widest(first, second, third)
    assert list(merged) == ["a", "b"]
    np.testing.assert_array_equal(merged["a"], [2.0, 6.0])
    np.testing.assert_array_equal(merged["b"], [3.0])
    np.testing.assert_array_equal(noise.widest(first)["a"], first["a"])


def test_measure_is_relative_to_each_row(rng: np.random.Generator) -> None:
    oracle = rng.normal(size=(1, 3, 16)) * np.array([1.0, 1e6, 1e-6])[None, :, None]
    errors = noise.measure(shifted(oracle, 1e-4), oracle, np.array([1e-4, 2e-4, 5e-5]))
    np.testing.assert_allclose(errors.error, [1e-4] * 3, rtol=1e-9)
    np.testing.assert_allclose(errors.ratios(0.0), [1, 0.5, 2], rtol=1e-9)


def test_a_division_by_a_floor_of_zero_is_no_warning() -> None:
    with np.errstate(divide="raise", invalid="raise"):
        ratios = RowErrors(np.array([0.0, 1e-3]), np.zeros(2)).ratios(0.0)
    np.testing.assert_array_equal(ratios, [0.0, np.inf])


def test_a_lucky_row_is_judged_by_the_typical_floor() -> None:
    errors = RowErrors(np.array([1e-6, 1e-6]), np.array([1e-6, 1e-12]))
    np.testing.assert_allclose(errors.ratios(errors.rms_floor), [1.0, np.sqrt(2)], rtol=1e-9)
    # A row's own floor counts where it is the larger.
    np.testing.assert_allclose(errors.ratios(1e-12), [1.0, 1e6], rtol=1e-9)


def test_the_same_row_again_is_one_draw() -> None:
    row, other = np.array([[1.0, 2.0, -0.5]]), np.array([[2.0, 1.0, -0.7]])
    exact = np.stack([row, row, other, row], axis=1)  # (1, 4, 1, 3)
    errors = noise.measure(exact + 1e-6, exact, np.full(4, 1e-7))
    assert errors.draws == 2
    assert errors[1:3].draws == 2
    assert errors[errors.error == errors.error[0]].draws == 1
    assert RowErrors.join([errors, errors[2:]]).draws == 2
    turned = row[:, [1, 0, 2]] * [-1, 1, 1]  # as RoPE turns a pair: its norm is the same
    both = np.stack([row, turned], axis=1)
    assert noise.measure(both, both, np.full(2, 1e-7)).draws == 2
    assert RowErrors(np.ones(3), np.ones(3)).draws == 3


def test_a_part_of_rows_without_marks_has_none() -> None:
    part = RowErrors(np.array([3.0, 4.0, 5.0]), np.array([1.0, 7.0, 2.0]))[1:]
    assert part.mark is None
    assert part.draws == 2
    np.testing.assert_array_equal(part.error, [4.0, 5.0])


def test_without_a_run_the_floor_is_float32_rounding(rng: np.random.Generator) -> None:
    exact = rng.normal(size=(1, 3, 8))
    rounding = exact.astype(np.float32) - exact
    want = np.linalg.norm(rounding[0], axis=1) / np.linalg.norm(exact[0], axis=1)
    np.testing.assert_allclose(noise.floor_of({"a": exact})["a"], want, rtol=1e-12)


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_float32_rows_whose_squares_float32_cannot_hold_are_measured(size: float) -> None:
    held = np.array([[[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]]], np.float32) * np.float32(size)
    errors = noise.measure(held * np.float32(1.5), held, np.ones(2))
    np.testing.assert_allclose(errors.error, [0.5, 0.5], rtol=1e-6)


def test_the_pages_of_what_was_measured_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[int] = []
    monkeypatch.setattr(noise, "forget", lambda *arrays: released.extend(map(id, arrays)))
    oracle, run, other = ({"a": np.ones((1, 2, 3)) * n} for n in (1, 2, 3))
    noise.floor_of(oracle, run, other)
    assert released == [id(oracle["a"]), id(run["a"]), id(other["a"])]


def test_the_ratio_is_rms_over_rms() -> None:
    errors = RowErrors(np.array([3.0, 4.0]), np.array([1.0, 7.0]))
    assert errors.rms_error == pytest.approx(np.sqrt(12.5))
    assert errors.rms_floor == pytest.approx(5.0)
    assert errors.error_ratio == pytest.approx(np.sqrt(12.5) / 5)
    both = RowErrors.join([errors, RowErrors(np.array([0.0]), np.array([2.0]))])
    np.testing.assert_array_equal(both.error, [3, 4, 0])
    np.testing.assert_array_equal(both.floor, [1, 7, 2])


class TestGreedy:
    """V = 100, so an L2 floor of 1e-4 relative is 1e-5 · |row| for a single logit."""

    FLOOR = np.array([1e-4, 1e-4])
    ALLOWED = 4.0

    def logits(self, rng: np.random.Generator, gap: float) -> tuple[np.ndarray, float]:
        """Two rows; in the second ids 7 and 9 lead, ``gap`` apart. And what is explained there."""
        rows = rng.normal(size=(1, 2, 100))
        rows[0, 1, 9] = 8.0
        rows[0, 1, 7] = 8.0 + gap
        scale = np.linalg.norm(rows[0, 1])
        return rows, 2 * noise.LARGEST_OF_MANY * self.ALLOWED * 1e-4 * scale / 10

    def swapped(self, rows: np.ndarray) -> np.ndarray:
        other = rows.copy()
        other[0, 1, [7, 9]] = rows[0, 1, [9, 7]]
        return other

    def test_a_swap_within_rounding_is_a_tie(self, rng: np.random.Generator) -> None:
        _, explained = self.logits(rng, 0.0)
        rows, _ = self.logits(rng, 0.9 * explained)
        given = self.swapped(rows)
        assert given[0, 1].argmax() != rows[0, 1].argmax()
        assert noise.greedy_mismatch(given, rows, self.FLOOR, self.ALLOWED) is None

    def test_a_swap_beyond_rounding_is_found(self, rng: np.random.Generator) -> None:
        _, explained = self.logits(rng, 0.0)
        rows, _ = self.logits(rng, 1.2 * explained)
        found = noise.greedy_mismatch(self.swapped(rows), rows, self.FLOOR, self.ALLOWED)
        assert found is not None
        row, wanted, got, gap, told = found
        assert (row, wanted, got) == (1, 7, 9)
        assert gap == pytest.approx(1.2 * explained, rel=1e-6)
        assert told == pytest.approx(explained, rel=0.2)

    def test_either_of_two_equal_logits_is_right_even_without_a_floor(self) -> None:
        rows = np.array([[[1.0, 8.0, 8.0]]])
        given = np.array([[[1.0, 7.5, 8.0]]])
        assert noise.greedy_mismatch(given, rows, np.zeros(1), self.ALLOWED) is None

    def test_the_same_token_is_no_mismatch_however_far_the_logits(
        self, rng: np.random.Generator
    ) -> None:
        rows, _ = self.logits(rng, 1.0)
        assert noise.greedy_mismatch(rows * 3, rows, self.FLOOR, self.ALLOWED) is None

    def test_a_tie_in_an_earlier_row_does_not_hide_a_later_swap(
        self, rng: np.random.Generator
    ) -> None:
        rows, _ = self.logits(rng, 1.0)
        rows[0, 0, 3] = rows[0, 0, 4] = 9.0
        given = self.swapped(rows)
        given[0, 0, 4] = np.nextafter(9.0, 10)
        found = noise.greedy_mismatch(given, rows, self.FLOOR, self.ALLOWED)
        assert found is not None
        assert found[0] == 1


@pytest.mark.parametrize("shape", [(1, 5, 7), (2, 3, 4, 16), (1, 1, 300), (1, 300, 1)])
def test_rows_are_measured_alike_in_pieces(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    oracle = rng.normal(size=shape)
    run, other = (oracle.astype(np.float32) * np.float32(1 + 1e-6 * n) for n in (1, 2))

    def figures() -> tuple[np.ndarray, ...]:
        floor = noise.floor_of({"a": oracle}, {"a": run})["a"]
        rows = noise.measure(other, oracle, floor)
        assert rows.mark is not None
        return floor, rows.error, rows.mark

    whole = figures()
    monkeypatch.setattr(noise, "PIECE", 2 * int(np.prod(shape[2:])))
    for in_pieces, at_once in zip(figures(), whole, strict=True):
        assert in_pieces.shape == (shape[0] * shape[1],)
        np.testing.assert_array_equal(in_pieces, at_once)
