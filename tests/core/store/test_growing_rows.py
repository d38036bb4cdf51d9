"""Rows that are recorded again and again are held once, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from edgeverify.core.store.growing_rows import GrowingRows, joined, parted
from edgeverify.core.store.mapped import spilled
from edgeverify.core.trace import Trace

STEPS = 40
SHAPE = (2, 8)


def caches(dtype: type = np.float32) -> list[np.ndarray]:
    """A KV cache after each of ``STEPS`` steps, each with a row more, all copies."""
    whole = np.random.default_rng(0).normal(size=(1, STEPS, *SHAPE)).astype(dtype)
    return [whole[:, : n + 1].copy() for n in range(STEPS)]


def trace_of(arrays: list[np.ndarray]) -> Trace:
    made = Trace()
    for at, array in enumerate(arrays):
        made.add(f"decode.{at}", "kv.0.k", array)
    return made


def memory(arrays: list[np.ndarray]) -> int:
    """Bytes of the memory that the arrays keep alive."""
    owners = {}
    for array in arrays:
        while isinstance(array.base, np.ndarray):
            array = array.base
        owners[id(array)] = array.nbytes
    return sum(owners.values())


def test_memory_and_files_grow_with_the_rows_not_with_their_square(tmp_path: Path) -> None:
    given = caches()
    made = trace_of(given)
    whole = given[-1].nbytes
    assert sum(array.nbytes for array in given) > 20 * whole
    assert memory(list(made.arrays.values())) <= 4 * whole  # rooms of 1, 2, 4 … rows
    made.save(tmp_path / "t.safetensors")
    assert (tmp_path / "t.safetensors").stat().st_size <= 4 * whole + 8192
    back = Trace.load(tmp_path / "t.safetensors")
    assert memory(list(back.arrays.values())) <= 4 * whole


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("way", ["memory", "file", "mapped", "spilled"])
def test_every_step_keeps_its_own_values(way: str, dtype: type, tmp_path: Path) -> None:
    given = caches(dtype)
    given[7][0, 3] += 1  # a step that wrote into an older row
    given[20] = given[20][:, :5]  # one that lost rows
    given[30][0, 0, 0, 0] = np.nan
    made = trace_of([array.copy() for array in given])
    if way != "memory":
        made.save(tmp_path / "t.safetensors")
        made = Trace.load(tmp_path / "t.safetensors", mapped=way == "mapped")
    if way == "spilled":
        made = made.spilled(tmp_path)
    assert list(made) == [f"decode.{n}/kv.0.k" for n in range(STEPS)]
    for array, key in zip(given, made, strict=True):
        assert made[key].dtype == dtype
        np.testing.assert_array_equal(made[key], array)


def test_signs_of_zero_and_bits_of_nan_are_values_too() -> None:
    first = np.zeros((1, 1, 2), np.float32)
    second = np.concatenate([-first, first], axis=1)
    rows = GrowingRows()
    rows.put(first)
    assert np.signbit(rows.put(second)[0, 0]).all()
    assert not np.signbit(first).any()


def test_another_dtype_or_width_begins_anew() -> None:
    rows = GrowingRows()
    rows.put(np.zeros((1, 2, 3), np.float32))
    assert rows.put(np.zeros((1, 3, 3))).dtype == np.float64
    assert rows.put(np.zeros((1, 4, 5))).shape == (1, 4, 5)


def test_views_of_one_array_are_not_copied() -> None:
    whole = caches()[-1]
    rows = GrowingRows()
    assert all(np.shares_memory(rows.put(whole[:, :n]), whole) for n in (3, 4, 9))


def test_arrays_of_equal_values_in_their_own_memory_are_held_apart() -> None:
    held, shared = parted({"a": np.zeros((1, 2, 3)), "b": np.zeros((1, 1, 3))})
    assert list(held) == ["a", "b"]
    assert not shared


def test_parts_are_joined_again() -> None:
    whole = caches()[-1]
    arrays = {"a": whole[:, :2], "b": whole, "c": whole[:, 2:4], "d": whole[..., :4]}
    held, shared = parted(arrays)
    assert list(held) == ["b", "c", "d"]
    assert shared == {"a": ("b", 2)}
    for key, array in joined(held, shared).items():
        np.testing.assert_array_equal(array, arrays[key])


@pytest.mark.parametrize(
    "wrong", [{"a": ("b", 99)}, {"a": ("b", 0)}, {"b": ("b", 1)}, {"a": ("z", 1)}]
)
def test_rows_that_there_are_not_are_refused(wrong: dict[str, tuple[str, int]]) -> None:
    with pytest.raises((KeyError, ValueError)):
        joined({"b": caches()[-1]}, wrong)


def test_a_scratch_file_holds_shared_rows_once(tmp_path: Path) -> None:
    whole = caches()[-1]
    moved = spilled({"a": whole[:, :2], "b": whole}, tmp_path)
    assert list(moved) == ["a", "b"]
    assert np.shares_memory(moved["a"], moved["b"])
    assert not np.shares_memory(moved["b"], whole)


def test_a_file_names_what_is_shared(tmp_path: Path) -> None:
    whole = caches()[-1]
    trace_of([whole[:, :n] for n in range(1, STEPS)]).save(tmp_path / "t.safetensors")
    with safe_open(tmp_path / "t.safetensors", framework="numpy") as file:
        assert list(file.keys()) == [f"decode.{STEPS - 2}/kv.0.k"]
        shared = json.loads(file.metadata()["shared"])
    assert shared["decode.0/kv.0.k"] == [f"decode.{STEPS - 2}/kv.0.k", 1]
