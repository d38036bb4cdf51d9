"""The bitwise comparison: what is counted, which value is told, and how far apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeverify.audits import bitwise
from edgeverify.audits.bitwise import Difference, checksums, difference

TINY = 2.0**-149  # the smallest float32 above zero


@pytest.mark.parametrize("chunk", [1, 4, 5, 12, 100])
def test_all_chunks_are_counted_and_the_first_difference_is_told(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitwise, "_CHUNK", chunk)
    expected = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = expected.copy()
    assert difference(expected, found) is None
    found[2, 3] = 99
    assert difference(expected, found) == Difference(1, 12, (2, 3), 11.0, 99.0)
    found[0, 0], found[1, 1] = 98, 97
    assert difference(expected, found) == Difference(3, 12, (0, 0), 0.0, 98.0)


def test_arrays_are_compared_by_index_whatever_their_strides() -> None:
    expected = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert difference(expected, np.asfortranarray(expected)) is None


@pytest.mark.parametrize(
    ("expected", "found", "ulps"),
    [
        (1.0, float(np.nextafter(np.float32(1), np.float32(2))), 1),
        (1.0, 1.0 - 2.0**-23, 2),
        (-1.0, -1.0 + 2.0**-23, 2),
        (TINY, -TINY, 2),
        (0.0, -TINY, 1),
        (0.0, -0.0, 0),
        (1.0, 2.0, 2**23),
    ],
)
def test_a_distance_is_counted_in_float32_values(expected: float, found: float, ulps: int) -> None:
    there = Difference(1, 8, (0,), expected, found)
    assert there.ulps == Difference(1, 8, (0,), found, expected).ulps == ulps
    assert str(there) == f"1 of 8 values differ, by {ulps} ulp{'' if ulps == 1 else 's'}"


def test_of_several_values_the_number_alone_is_told() -> None:
    assert str(Difference(2, 8, (0,), 1.0, 2.0)) == "2 of 8 values differ"


def test_a_tensor_half_of_which_differs_is_another_one() -> None:
    assert Difference(3, 8, (0,), 1.0, 2.0).slight
    assert not Difference(4, 8, (0,), 1.0, 2.0).slight


def test_checksums_are_by_name() -> None:
    one, two = torch.zeros(3), torch.ones(3)
    sums = checksums({"one": one, "two": two})
    assert list(sums) == ["one", "two"]
    assert sums == {**checksums({"two": two}), **checksums({"one": one})}
    assert sums["one"] != sums["two"]
