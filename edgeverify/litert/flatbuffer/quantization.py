"""Reads how a constant of a .tflite is quantized, and the numbers that it stands for.

A quantized weight is ``(stored - zero_point) * scale`` (LiteRT's 8-bit quantization specification).
Scales and zero points of a tensor, or of each channel, are in the tensor's own table. Those of
blocks are in separate tensors, which the table names by their number in the subgraph (schema.fbs,
tables ``QuantizationParameters`` and ``BlockwiseQuantization``). A float16 weight has neither: it
is widened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeverify.core.errors import ArtifactError
from edgeverify.litert.flatbuffer.graph import Graph, ModelFile

TENSOR, CHANNEL, BLOCK = "tensor", "channel", "block"
DTYPES = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
# dtype → bits of an element, for the stored dtypes; below eight, several elements share a byte.
BITS = {
    "float64": 64,
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "int64": 64,
    "int32": 32,
    "int16": 16,
    "int8": 8,
    "uint8": 8,
    "int4": 4,
    "uint4": 4,
    "int2": 2,
    "bool": 8,
}
# Elements that are widened at a time, if a table need not be widened whole: 128 MiB in float64.
PIECE = 1 << 24
_SIGNED = ("int2", "int4")
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_INTEGERS = ("int16", "int8", "uint8", "int4", "uint4", "int2")
_BLOCKWISE = schema.QuantizationDetails.BlockwiseQuantization


@dataclass(frozen=True)
class Quantized:
    """Says how a constant is quantized.

    Attributes:
        dtype: the stored dtype: ``int8``, ``int4``, ``int2``, ``uint8``, ``int16``, ``float16``, …
        granularity: what one scale applies to: the ``tensor``, a ``channel`` or a ``block``.
        block_size: the elements of a block, along the last axis; None for the other granularities.
        axis: the axis of the channels, also for blocks, whose scales are (channels, blocks).
        scales: float64: (1,), (channels,) or, for blocks, (channels, blocks). 1 for float16.
        zero_points: int64, with the shape of the scales.
    """

    dtype: str
    granularity: str
    block_size: int | None
    axis: int
    scales: np.ndarray
    zero_points: np.ndarray


def constant_of(graph: Graph, tensor: int) -> int:
    """Returns the constant behind a tensor: the tensor itself, or the input of its DEQUANTIZE.

    Files of float16 or weight-only recipes have each weight behind such an op.
    """
    op = graph.producer.get(tensor)
    while op is not None and op.name == "DEQUANTIZE":
        tensor = op.inputs[0]
        op = graph.producer.get(tensor)
    return tensor


def read(file: ModelFile, graph: Graph, tensor: int) -> Quantized | None:
    """Reads how a constant is quantized; returns None if it is not, e.g. a float32 weight.

    Args:
        file: the .tflite.
        graph: the subgraph of the tensor.
        tensor: a constant, or the output of a DEQUANTIZE of one.

    Raises:
        ArtifactError: the parameters do not fit the tensor, as in a damaged file.
    """
    tensor = constant_of(graph, tensor)
    raw = graph.raw.tensors[tensor]
    dtype = DTYPES.get(raw.type, str(raw.type))
    if dtype in ("float16", "bfloat16"):
        return Quantized(dtype, TENSOR, None, 0, np.ones(1), np.zeros(1, np.int64))
    found = raw.quantization
    if found is None or dtype not in _INTEGERS:
        return None
    if found.detailsType == _BLOCKWISE and found.details is not None:
        return _blockwise(file, graph, tensor, dtype, found.details)
    if found.scale is None or not len(found.scale):
        return None
    return _affine(file, graph, tensor, dtype, found)


def values(file: ModelFile, graph: Graph, tensor: int, rows: slice = slice(None)) -> np.ndarray:
    """Returns the numbers that a constant stands for.

    Args:
        file, graph, tensor: as for ``read``; a float constant is also allowed.
        rows: the rows of its first axis; all if left out. A large table takes eight times its int8
            bytes.

    Returns:
        float64, in the tensor's shape.

    Raises:
        ArtifactError: the tensor has no bytes of its own, or they do not fit its shape, or weights
            do not have its dtype.
    """
    tensor = constant_of(graph, tensor)
    whole = stored(file, graph, tensor)
    held = (whole[rows] if whole.ndim else whole).astype(np.float64)
    found = read(file, graph, tensor)
    if found is None or found.dtype in _FLOATS:
        return held
    scales, points = found.scales, found.zero_points
    if found.granularity == BLOCK:
        blocks = len(whole), -1, scales.shape[-1]
        scales, points = (part.reshape(blocks)[rows][..., None] for part in (scales, points))
        split = held.reshape(*scales.shape[:-1], -1)
        return ((split - points) * scales).reshape(held.shape)
    along = [1] * held.ndim
    if found.granularity == CHANNEL:
        along[found.axis] = -1
        if found.axis == 0:
            scales, points = scales[rows], points[rows]
    return (held - points.reshape(along)) * scales.reshape(along)


def pieces(shape: Sequence[int]) -> Iterator[slice]:
    """Yields the rows of a constant, cut into pieces of about ``PIECE`` elements."""
    count = max(1, PIECE // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0] if shape else 1, count):
        yield slice(start, start + count)


def stored(file: ModelFile, graph: Graph, tensor: int) -> np.ndarray:
    """Returns a constant as stored, unpacked to one element each, in the tensor's shape.

    If several elements share a byte, the first is in the lowest bits.

    Returns:
        The stored dtype; int8 for int4 and int2, uint8 for uint4, float32 for bfloat16.

    Raises:
        ArtifactError: as for ``values``.
    """
    tensor = constant_of(graph, tensor)
    raw, shape = graph.raw.tensors[tensor], graph.shape(tensor)
    dtype = DTYPES.get(raw.type, str(raw.type))
    span = _span(file, graph, tensor)
    if span is None:
        raise _odd(file, graph, tensor, "has no bytes of its own", "a constant")
    if dtype not in BITS:
        raise _odd(file, graph, tensor, f"is of dtype {dtype}", f"one of {', '.join(BITS)}")
    count = math.prod(shape)
    needed = -(-count * BITS[dtype] // 8)
    if span[1] != needed or min(shape, default=1) < 0:
        raise _odd(
            file, graph, tensor, f"has {span[1]} bytes", f"{needed} for {dtype} {list(shape)}"
        )
    data = np.frombuffer(file.map, np.uint8, span[1], span[0])
    return _unpacked(data, dtype, count).reshape(shape)


def _unpacked(data: np.ndarray, dtype: str, count: int) -> np.ndarray:
    if dtype == "bfloat16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    bits = BITS[dtype]
    if bits >= 8:
        return data.view(np.dtype(dtype).newbyteorder("<"))
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = ((data[:, None] >> shifts) & np.uint8(2**bits - 1)).reshape(-1)[:count]
    if dtype not in _SIGNED:
        return parts
    half = np.int8(2 ** (bits - 1))
    return (parts.astype(np.int8) ^ half) - half


def _affine(file: ModelFile, graph: Graph, tensor: int, dtype: str, found: Any) -> Quantized:
    """Reads one scale for the tensor, or one for each channel."""
    shape, axis = graph.shape(tensor), int(found.quantizedDimension)
    scales = np.asarray(found.scale, np.float64)
    points = found.zeroPoint
    zeros = np.zeros(len(scales), np.int64) if points is None or not len(points) else \
        np.asarray(points, np.int64)  # fmt: skip
    channels = shape[axis] if 0 <= axis < len(shape) else -1
    if len(scales) != len(zeros) or len(scales) not in (1, channels):
        given = f"{len(scales)} scales and {len(zeros)} zero points along axis {axis}"
        raise _odd(file, graph, tensor, f"has {given}", f"one, or one for each of {list(shape)}")
    kind = CHANNEL if len(scales) == channels else TENSOR
    return Quantized(dtype, kind, None, axis if kind == CHANNEL else 0, scales, zeros)


def _blockwise(file: ModelFile, graph: Graph, tensor: int, dtype: str, found: Any) -> Quantized:
    """Reads the scales of blocks along the last axis, which are in a tensor (channels, blocks)."""
    shape, size = graph.shape(tensor), int(found.blockSize)
    if len(shape) < 2 or size < 1 or shape[-1] % size:
        what = f"is quantized in blocks of {size}"
        raise _odd(file, graph, tensor, what, f"a divisor of the last of {list(shape)}")
    grid = (math.prod(shape[:-1]), shape[-1] // size)
    scales = _beside(file, graph, tensor, found.scales, grid).astype(np.float64)
    zeros = np.zeros(grid, np.int64)
    # The quantizer writes -1 if there are none (ai-edge-quantizer, quantize_tensor.py). 0 is the
    # field's default, and is an input of the subgraph.
    if found.zeroPoints > 0:
        zeros = _beside(file, graph, tensor, found.zeroPoints, grid).astype(np.int64)
    return Quantized(dtype, BLOCK, size, 0, scales, zeros)


def _beside(
    file: ModelFile, graph: Graph, tensor: int, other: int, grid: tuple[int, int]
) -> np.ndarray:
    """Returns the tensor with the blocks' scales or zero points."""
    if not 0 <= other < len(graph.raw.tensors):
        what = f"has its blocks' parameters in tensor {other}"
        raise _odd(file, graph, tensor, what, f"one of the subgraph's {len(graph.raw.tensors)}")
    held = stored(file, graph, other)
    if held.size != math.prod(grid):
        what = f"has {held.size} parameters of blocks"
        raise _odd(file, graph, tensor, what, f"{math.prod(grid)}: {grid[0]} × {grid[1]}")
    return held.reshape(grid)


def _span(file: ModelFile, graph: Graph, tensor: int) -> tuple[int, int] | None:
    buffer = graph.raw.tensors[tensor].buffer
    if tensor in graph.producer or not 0 <= buffer < file.num_buffers:
        return None
    return file.buffer_span(buffer)


def _odd(file: ModelFile, graph: Graph, tensor: int, what: str, expected: str) -> ArtifactError:
    name = (graph.raw.tensors[tensor].name or b"").decode(errors="replace")[-80:]
    return ArtifactError(
        f"tensor {name!r} {what}",
        where=file.path,
        expected=expected,
        fix="the file is damaged, or of a kind that is not known here: convert it again",
    )
