"""The operators' definitions, against the runtime's own kernels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeverify.diagnose.operators.kernels import Call, UnknownOpError, compute

X = np.array([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])


def call(name: str, shape: tuple[int, ...] = (), **options: Any) -> Call:
    return Call(name, SimpleNamespace(**options), shape, np.dtype(np.float64))


@pytest.mark.parametrize(
    ("given", "inputs", "expected"),
    [
        (call("SUB"), [X, X * 2], -X),
        (call("ADD", fusedActivationFunction=1), [X, X], np.maximum(2 * X, 0)),
        (call("SQUARED_DIFFERENCE"), [X, X - 3], np.full((2, 3), 9.0)),
        (call("MEAN", keepDims=True), [X, np.array([1])], [[2 / 3], [1.0]]),
        (call("SLICE"), [X, [0, 1], [2, -1]], X[:, 1:]),
        (call("TRANSPOSE"), [X, [1, 0]], X.T),
        (call("CONCATENATION", axis=1), [X, X], np.hstack([X, X])),
        (call("FULLY_CONNECTED", (2, 1)), [X, np.ones((1, 3)), [10.0]], [[12.0], [13.0]]),
        (call("BATCH_MATMUL", adjX=False, adjY=True), [X, X], X @ X.T),
        (call("SOFTMAX", beta=2.0), [np.log([[1.0, 3.0]])], [[0.1, 0.9]]),
        (call("EMBEDDING_LOOKUP"), [np.array([1, 0]), X], X[::-1]),
        (call("GATHER_ND"), [X, np.array([[1, 2], [0, 0]])], [-6.0, 1.0]),
        # a start that is too late is moved back, as in the runtime
        (call("DYNAMIC_UPDATE_SLICE"), [X, [[9.0, 9.0]], [1, 2]], [[1, -2, 3], [4, 9, 9]]),
        (call("GELU", approximate=False), [np.array([1.0])], [0.8413447460685429]),
        (call("GELU", approximate=True), [np.array([1.0])], [0.8411919906082768]),
        (call("RESHAPE"), [X, [3, 2]], X.reshape(3, 2)),
        (call("PACK", axis=0), [np.array(1), np.array(2)], [1, 2]),
    ],
    ids=lambda value: value.name if isinstance(value, Call) else "",
)
def test_an_operator_gives(given: Call, inputs: list[Any], expected: Any) -> None:
    got = compute(given, [np.asarray(item) for item in inputs])
    np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_what_is_not_defined_is_said_to_be_so() -> None:
    with pytest.raises(UnknownOpError, match="CONV_2D is not defined"):
        compute(call("CONV_2D"), [X])
    with pytest.raises(UnknownOpError, match="fused activation 5"):
        compute(call("ADD", fusedActivationFunction=5), [X, X])


def test_an_index_outside_of_the_table_is_no_value() -> None:
    with pytest.raises(ValueError, match="outside of the table"):
        compute(call("GATHER_ND"), [X, np.array([[2, 0]])])
