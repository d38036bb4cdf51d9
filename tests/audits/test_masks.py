"""What a mask lets through, told by its values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeverify.audits.masks import window_of

HIDDEN = -np.inf


def windowed(rows: int, window: int, hidden: float = HIDDEN) -> np.ndarray:
    distance = np.arange(rows)[:, None] - np.arange(rows)[None]
    return np.where((distance >= 0) & (distance < window), 0.0, hidden)


@pytest.mark.parametrize("hidden", [HIDDEN, -2.4e38, -1.1e30])
@pytest.mark.parametrize(("window", "found"), [(1, 1), (3, 3), (6, 6), (7, "none"), (9, "none")])
def test_a_window_is_the_number_of_keys_that_a_query_sees(
    window: int, found: Any, hidden: float
) -> None:
    assert window_of(windowed(7, window, hidden)) == found


@pytest.mark.parametrize("value", [1.0, -1e30, -1.0, np.nan])
def test_a_value_that_softmax_does_not_turn_into_zero_hides_nothing(value: float) -> None:
    mask = windowed(7, 3)
    mask[4, 1] = value
    assert window_of(mask) == "values other than 0 and -inf"


@pytest.mark.parametrize(("row", "column"), [(2, 4), (5, 1)])
@pytest.mark.parametrize("window", [3, 7])
def test_one_key_too_many_or_too_few_is_no_window(row: int, column: int, window: int) -> None:
    mask = windowed(7, window)
    mask[row, column] = HIDDEN if mask[row, column] == 0 else 0.0
    assert window_of(mask) == "a pattern that is no causal window"
