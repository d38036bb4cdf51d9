"""Which value of the model an array is."""

from __future__ import annotations

import numpy as np
import pytest

from edgeverify.diagnose.operators.match import ROUNDING, ValueIndex, difference
from edgeverify.diagnose.operators.model_values import ModelValue

K = np.random.default_rng(0).normal(size=(1, 4, 3, 2))
LOWEST = np.finfo(np.float32).min


def value(array: np.ndarray, name: str = "") -> ModelValue:
    return ModelValue(name, "aten.mul.Tensor", array)


def test_one_element_is_seen_at_the_scale_of_its_row() -> None:
    other = K.copy()
    other[0, 1, 2, 0] += 1e-3 * np.abs(K[0, 1, 2]).max()
    assert difference(other, K) == pytest.approx(1e-3)


def test_a_mask_may_say_minus_infinity_as_the_lowest_float() -> None:
    truth = np.array([[0.0, -np.inf]])
    assert difference(np.array([[0.0, LOWEST]]), truth) == 0
    assert difference(np.array([[0.0, 0.0]]), truth) == np.inf
    assert difference(np.array([[0.0, -LOWEST]]), truth) == np.inf
    assert difference(np.array([[np.nan, LOWEST]]), truth) == np.inf


def test_axes_of_length_one_do_not_count() -> None:
    index = ValueIndex([value(K, "k")])
    found = index.find(K.reshape(4, 1, 3, 2) * (1 + ROUNDING / 2))
    assert found is not None
    assert found.module == "k"
    assert index.find(K * (1 + 3 * ROUNDING)) is None


def test_another_order_of_the_axes_is_moved_and_not_found() -> None:
    index = ValueIndex([value(K)])
    turned = K.transpose(0, 2, 1, 3)
    assert index.find(turned) is None
    assert index.moved(turned)
    # as many elements in the same order, in other groups
    assert index.moved(K.reshape(2, 12))
    assert not index.moved(turned * 1.001)


def test_what_the_model_repeats_is_moved_before_it_is_repeated() -> None:
    """The converter scales one KV head before it is repeated, PyTorch after."""
    index = ValueIndex([value(np.broadcast_to(K[0, 0], (4, 3, 2)))])
    assert index.moved(K[0, 0])
    assert index.moved(K[0, 0].T)
    assert not index.moved(K[0, 1])


def test_equal_values_are_kept_once_and_in_order() -> None:
    index = ValueIndex([value(K, "first"), value(2 * K, "second"), value(K, "third")])
    assert [v.module for v in index.like((1, 4, 3, 2), "f")] == ["first", "second"]
    first, second = index.like((4, 3, 2), "f")
    assert index.order(first) < index.order(second)


def test_positions_are_found_as_integers_and_as_the_floats_they_are_cast_to() -> None:
    index = ValueIndex([value(np.arange(5))])
    assert index.find(np.arange(5)) is not None
    assert index.find(np.arange(5.0)) is not None
