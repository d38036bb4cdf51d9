"""Tiny .tflite files of one operator with a quantized weight, made without a converter."""

from __future__ import annotations

from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = schema.TensorType
OPS = schema.BuiltinOperator


def tensor(name: str, shape: tuple[int, ...], dtype: int, buffer: int = 0) -> schema.TensorT:
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, list(shape), dtype, buffer
    return made


def affine(
    scales: np.ndarray, zero_points: np.ndarray, axis: int
) -> schema.QuantizationParametersT:
    made = schema.QuantizationParametersT()
    made.scale = scales.astype(np.float32).tolist()
    made.zeroPoint = zero_points.tolist()
    made.quantizedDimension = axis
    return made


def blockwise(scales: int, size: int) -> schema.QuantizationParametersT:
    details = schema.BlockwiseQuantizationT()
    details.scales, details.zeroPoints, details.blockSize = scales, -1, size
    made = schema.QuantizationParametersT()
    made.detailsType = schema.QuantizationDetails.BlockwiseQuantization
    made.details = details
    return made


def packed(values: np.ndarray, bits: int) -> bytes:
    """Elements in bytes, the first in the lowest bits."""
    flat = [int(v) & (2**bits - 1) for v in values.reshape(-1)]
    each = 8 // bits
    flat += [0] * (-len(flat) % each)
    return bytes(
        sum(value << (bits * place) for place, value in enumerate(flat[i : i + each]))
        for i in range(0, len(flat), each)
    )


def write(
    path: Path,
    op: str,
    weight: schema.TensorT,
    data: bytes,
    inputs: tuple[int, ...],
    output: tuple[int, ...],
    scales: np.ndarray | None = None,
) -> Path:
    """A file with one op on a constant.

    Args:
        path: where it goes.
        op: ``DEQUANTIZE`` (of the weight), ``FULLY_CONNECTED`` or ``EMBEDDING_LOOKUP``.
        weight: tensor 1 of the subgraph, in buffer 1.
        data: its bytes.
        inputs: shape of the signature's input ``x``: float32, or int32 for a look-up.
        output: shape of its output ``y``, float32.
        scales: of blocks: tensor 3, in buffer 2.
    """
    number = TYPES.INT32 if op == "EMBEDDING_LOOKUP" else TYPES.FLOAT32
    graph = schema.SubGraphT()
    graph.tensors = [tensor("x", inputs, number), weight, tensor("y", output, TYPES.FLOAT32)]
    contents = [b"", data]
    if scales is not None:
        graph.tensors.append(tensor("w_scales", scales.shape, TYPES.FLOAT16, 2))
        contents.append(scales.astype(np.float16).tobytes())
    made = schema.OperatorT()
    made.inputs = [1] if op == "DEQUANTIZE" else [0, 1]
    made.outputs = [2]
    if op == "FULLY_CONNECTED":
        made.inputs = [0, 1, -1]
        made.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        made.builtinOptions = schema.FullyConnectedOptionsT()
    graph.operators, graph.inputs, graph.outputs = [made], [0], [2]
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(OPS, op)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = {"FULLY_CONNECTED": 12, "EMBEDDING_LOOKUP": 4, "DEQUANTIZE": 6}[op]
    model = schema.ModelT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [code]
    model.buffers = []
    for content in contents:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(content, np.uint8) if content else None
        model.buffers.append(buffer)
    model.signatureDefs = [_signature()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _signature() -> schema.SignatureDefT:
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = "run", 0
    sides = []
    for name, index in (("x", 0), ("y", 2)):
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        sides.append([entry])
    made.inputs, made.outputs = sides
    return made
