"""Defines what each operator type of a .tflite computes, in float64.

The definitions follow the schema (tensorflow/lite/schema/schema.fbs) and the runtime's reference
kernels. Only the operators that occur in language models of the Generative API are defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray


class UnknownOpError(Exception):
    """An operator type, or a variant of one, that is not defined here."""


@dataclass(frozen=True)
class Call:
    """One operator call.

    Attributes:
        name: its type, e.g. ``FULLY_CONNECTED``.
        options: the schema's options object, or None.
        shape: shape of its output, as the file states it.
        dtype: dtype of its output; ``float64`` for every float.
    """

    name: str
    options: Any
    shape: tuple[int, ...]
    dtype: np.dtype


def compute(call: Call, inputs: Sequence[Array]) -> Array:
    """Computes the operator's output.

    Args:
        call: which operator.
        inputs: float64, integer or boolean arrays, without absent optional inputs.

    Raises:
        UnknownOpError: the operator is not defined here.
        ValueError: the inputs do not fit the operator.
    """
    if call.name not in KERNELS:
        raise UnknownOpError(f"operator {call.name} is not defined")
    with np.errstate(all="ignore"):
        result = KERNELS[call.name](call, list(inputs))
    return np.asarray(_activated(result, call.options))


def _activated(value: Array, options: Any) -> Array:
    kind = getattr(options, "fusedActivationFunction", 0)
    if kind not in ACTIVATIONS:
        raise UnknownOpError(f"fused activation {kind} is not defined")
    return ACTIVATIONS[kind](value)


# schema.fbs, enum ActivationFunctionType
ACTIVATIONS: dict[int, Callable[[Array], Array]] = {
    0: lambda x: x,
    1: lambda x: np.maximum(x, 0),
    2: lambda x: np.clip(x, -1, 1),
    3: lambda x: np.clip(x, 0, 6),
    4: np.tanh,
}


def _fully_connected(call: Call, inputs: list[Array]) -> Array:
    x, weight, *bias = inputs
    out = x.reshape(-1, weight.shape[1]) @ weight.T
    return (out + bias[0] if bias else out).reshape(call.shape)


def _batch_matmul(call: Call, inputs: list[Array]) -> Array:
    left, right = inputs
    left = left.swapaxes(-1, -2) if call.options.adjX else left
    return left @ (right.swapaxes(-1, -2) if call.options.adjY else right)


def _softmax(call: Call, inputs: list[Array]) -> Array:
    scores = inputs[0] * call.options.beta
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _gelu(call: Call, inputs: list[Array]) -> Array:
    x = inputs[0]
    if call.options.approximate:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf, [np.float64])(x / math.sqrt(2)))


def _reduced(function: Callable[..., Array]) -> Callable[[Call, list[Array]], Array]:
    def compute(call: Call, inputs: list[Array]) -> Array:
        axes = tuple(int(axis) for axis in inputs[1].ravel())
        return function(inputs[0], axis=axes, keepdims=bool(call.options.keepDims))

    return compute


def _reshape(call: Call, inputs: list[Array]) -> Array:
    shape = inputs[1] if len(inputs) > 1 else call.options.newShape
    return inputs[0].reshape([int(n) for n in shape])


def _slice(call: Call, inputs: list[Array]) -> Array:
    x, begins, sizes = inputs
    spans = zip(begins, sizes, x.shape, strict=True)
    cuts = tuple(slice(int(b), int(n if s < 0 else b + s)) for b, s, n in spans)
    return x[cuts]


def _gather_nd(call: Call, inputs: list[Array]) -> Array:
    table, indices = inputs
    bounds = np.array(table.shape[: indices.shape[-1]])
    if ((indices < 0) | (indices >= bounds)).any():
        raise ValueError("an index outside of the table")
    return table[tuple(np.moveaxis(indices, -1, 0))]


def _update_slice(call: Call, inputs: list[Array]) -> Array:
    """Updates a slice; as in StableHLO, a start that is too late moves back until it fits."""
    target, update, starts = inputs
    spans = zip(starts, update.shape, target.shape, strict=True)
    begins = [min(max(int(s), 0), n - length) for s, length, n in spans]
    result = target.copy()
    result[tuple(slice(b, b + n) for b, n in zip(begins, update.shape, strict=True))] = update
    return result


def _plain(function: Callable[..., Array]) -> Callable[[Call, list[Array]], Array]:
    return lambda call, inputs: function(*inputs)


KERNELS: dict[str, Callable[[Call, list[Array]], Array]] = {
    "ADD": _plain(np.add),
    "SUB": _plain(np.subtract),
    "MUL": _plain(np.multiply),
    "SQUARED_DIFFERENCE": _plain(lambda a, b: (a - b) ** 2),
    "RSQRT": _plain(lambda x: 1 / np.sqrt(x)),
    "COS": _plain(np.cos),
    "SIN": _plain(np.sin),
    "TANH": _plain(np.tanh),
    "LOGISTIC": _plain(lambda x: 1 / (1 + np.exp(-x))),
    "GELU": _gelu,
    "SOFTMAX": _softmax,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _batch_matmul,
    "MEAN": _reduced(np.mean),
    "REDUCE_ALL": _reduced(np.all),
    "LESS": _plain(np.less),
    "LESS_EQUAL": _plain(np.less_equal),
    "GREATER_EQUAL": _plain(np.greater_equal),
    "LOGICAL_AND": _plain(np.logical_and),
    "SELECT": _plain(np.where),
    "SELECT_V2": _plain(np.where),
    "CAST": lambda call, inputs: inputs[0].astype(call.dtype),
    "RESHAPE": _reshape,
    "TRANSPOSE": _plain(lambda x, order: x.transpose([int(axis) for axis in order])),
    "BROADCAST_TO": _plain(lambda x, shape: np.broadcast_to(x, [int(n) for n in shape])),
    "CONCATENATION": lambda call, inputs: np.concatenate(inputs, call.options.axis),
    "PACK": lambda call, inputs: np.stack(inputs, call.options.axis),
    "SLICE": _slice,
    "GATHER_ND": _gather_nd,
    "EMBEDDING_LOOKUP": _plain(lambda ids, table: table[ids]),
    "DYNAMIC_UPDATE_SLICE": _update_slice,
}
