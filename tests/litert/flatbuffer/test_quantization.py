"""Quantized constants: what they stand for, held against the runtime's own kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeverify.core.errors import ArtifactError
from edgeverify.litert.flatbuffer import ModelFile, quantization
from tests.litert.flatbuffer import made

TYPES = schema.TensorType
RESOLVERS = (OpResolverType.BUILTIN, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
ROWS, COLUMNS, BLOCK = 6, 64, 32
# Relative: the dynamic kernels multiply by the activations' own scale in float32.
ROUNDING = 1e-6


def drawn(low: int, high: int) -> np.ndarray:
    return np.random.default_rng(5).integers(low, high + 1, (ROWS, COLUMNS))


def scales_of(*shape: int) -> np.ndarray:
    """Exact in float16, no two alike."""
    count = int(np.prod(shape))
    return (np.arange(1, count + 1) / 64).reshape(shape)


def run(path: Path, x: np.ndarray, resolver: OpResolverType) -> np.ndarray:
    interpreter = Interpreter(str(path), experimental_op_resolver_type=resolver)
    result: np.ndarray = interpreter.get_signature_runner("run")(x=x)["y"]
    return result


def opened(path: Path) -> tuple[ModelFile, Any]:
    file = ModelFile(path)
    return file, file.graph("run")


def weight(dtype: int, parameters: Any = None) -> schema.TensorT:
    tensor = made.tensor("w", (ROWS, COLUMNS), dtype, 1)
    tensor.quantization = parameters
    return tensor


def channelwise(path: Path, op: str, dtype: int, bits: int, **shapes: Any) -> Path:
    limit = 2 ** (bits - 1) - 1
    parameters = made.affine(scales_of(ROWS), np.zeros(ROWS, np.int64), 0)
    return made.write(
        path, op, weight(dtype, parameters), made.packed(drawn(-limit, limit), bits), **shapes
    )


def blocks(path: Path, op: str, **shapes: Any) -> Path:
    scales = scales_of(ROWS, COLUMNS // BLOCK)
    data = made.packed(drawn(-7, 7), 4)
    return made.write(
        path, op, weight(TYPES.INT4, made.blockwise(3, BLOCK)), data, scales=scales, **shapes
    )


PROJECTION = {"inputs": (COLUMNS, COLUMNS), "output": (COLUMNS, ROWS)}
LOOKUP = {"inputs": (ROWS,), "output": (ROWS, COLUMNS)}
PROJECTED: dict[str, Callable[[Path], Path]] = {
    "int8": lambda p: channelwise(p, "FULLY_CONNECTED", TYPES.INT8, 8, **PROJECTION),
    "int4": lambda p: channelwise(p, "FULLY_CONNECTED", TYPES.INT4, 4, **PROJECTION),
    "int4 in blocks": lambda p: blocks(p, "FULLY_CONNECTED", **PROJECTION),
}


@pytest.mark.parametrize("resolver", RESOLVERS, ids=["xnnpack", "builtin"])
@pytest.mark.parametrize("kind", PROJECTED)
def test_a_projection_of_unit_vectors_gives_the_weight(
    kind: str, resolver: OpResolverType, tmp_path: Path
) -> None:
    """A unit vector is quantized without an error, so that the kernel returns a column."""
    file, graph = opened(PROJECTED[kind](tmp_path / "x.tflite"))
    ours = quantization.values(file, graph, 1)
    theirs = run(file.path, np.eye(COLUMNS, dtype=np.float32), resolver).T
    assert ours.shape == theirs.shape == (ROWS, COLUMNS)
    assert np.abs(ours - theirs).max() <= ROUNDING * np.abs(ours).max()


def test_a_look_up_gives_the_rows(tmp_path: Path) -> None:
    for path in (
        channelwise(tmp_path / "a.tflite", "EMBEDDING_LOOKUP", TYPES.INT8, 8, **LOOKUP),
        channelwise(tmp_path / "b.tflite", "EMBEDDING_LOOKUP", TYPES.INT4, 4, **LOOKUP),
        blocks(tmp_path / "c.tflite", "EMBEDDING_LOOKUP", **LOOKUP),
    ):
        file, graph = opened(path)
        theirs = run(path, np.arange(ROWS, dtype=np.int32), RESOLVERS[1])
        assert np.array_equal(quantization.values(file, graph, 1), theirs)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float16"])
def test_a_dequantized_constant_is_what_the_op_makes(dtype: str, tmp_path: Path) -> None:
    held = drawn(0, 100).astype(dtype)
    parameters = None
    if dtype != "float16":
        parameters = made.affine(np.array([0.375]), np.array([3]), 0)
    tensor = weight(getattr(TYPES, dtype.upper()), parameters)
    path = made.write(
        tmp_path / "x.tflite", "DEQUANTIZE", tensor, held.tobytes(), (1,), (ROWS, COLUMNS)
    )
    file, graph = opened(path)
    theirs = run(path, np.zeros(1, np.float32), RESOLVERS[1])
    behind = quantization.values(file, graph, 2)
    assert np.array_equal(behind, theirs)
    assert np.array_equal(quantization.values(file, graph, 1), theirs)
    found = quantization.read(file, graph, 2)
    assert found is not None
    assert (found.dtype, found.granularity, found.block_size) == (dtype, "tensor", None)
    if dtype != "float16":
        assert (found.scales.tolist(), found.zero_points.tolist()) == ([0.375], [3])


def test_a_float32_weight_is_not_quantized(tmp_path: Path) -> None:
    held = drawn(-9, 9).astype(np.float32)
    path = made.write(
        tmp_path / "x.tflite",
        "FULLY_CONNECTED",
        weight(TYPES.FLOAT32),
        held.tobytes(),
        **PROJECTION,
    )
    file, graph = opened(path)
    assert quantization.read(file, graph, 1) is None
    assert np.array_equal(quantization.values(file, graph, 1), held)


def test_the_parameters_are_told(tmp_path: Path) -> None:
    file, graph = opened(blocks(tmp_path / "b.tflite", "FULLY_CONNECTED", **PROJECTION))
    found = quantization.read(file, graph, 1)
    assert found is not None
    assert (found.dtype, found.granularity, found.block_size) == ("int4", "block", BLOCK)
    assert np.array_equal(found.scales, scales_of(ROWS, 2))
    assert np.array_equal(found.zero_points, np.zeros((ROWS, 2)))
    path = channelwise(tmp_path / "c.tflite", "FULLY_CONNECTED", TYPES.INT8, 8, **PROJECTION)
    found = quantization.read(*opened(path), 1)
    assert found is not None
    assert (found.granularity, found.block_size, found.axis) == ("channel", None, 0)
    assert np.array_equal(found.scales, scales_of(ROWS))


@pytest.mark.parametrize(
    ("bits", "data", "elements"),
    [(4, 0x3F, [-1, 3]), (4, 0x87, [7, -8]), (2, 0b11_10_01_00, [0, 1, -2, -1])],
)
def test_the_first_element_is_in_the_lowest_bits(
    bits: int, data: int, elements: list[int], tmp_path: Path
) -> None:
    tensor = made.tensor("w", (len(elements),), getattr(TYPES, f"INT{bits}"), 1)
    path = made.write(
        tmp_path / "x.tflite", "DEQUANTIZE", tensor, bytes([data]), (1,), (len(elements),)
    )
    assert quantization.stored(*opened(path), 1).tolist() == elements


def test_an_odd_number_of_nibbles_leaves_the_last_one_out(tmp_path: Path) -> None:
    tensor = made.tensor("w", (3, 1), TYPES.INT4, 1)
    data = made.packed(np.array([1, -2, 3]), 4)
    path = made.write(tmp_path / "x.tflite", "DEQUANTIZE", tensor, data, (1,), (3, 1))
    assert quantization.stored(*opened(path), 1).tolist() == [[1], [-2], [3]]


def test_parameters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = blocks(tmp_path / "x.tflite", "FULLY_CONNECTED", **PROJECTION)

    def refused(change: Callable[[Any, Any], None], words: str) -> None:
        file, graph = opened(path)
        change(graph.raw.tensors[1], graph.raw.tensors[-1])
        with pytest.raises(ArtifactError, match=words):
            quantization.values(file, graph, 1)

    def at(name: str, value: Any) -> Callable[[Any, Any], None]:
        return lambda w, _: setattr(w.quantization.details, name, value)

    refused(at("scales", 99), "'w' has its blocks' parameters in tensor 99; expected one of the")
    refused(at("blockSize", 48), r"in blocks of 48; expected a divisor of the last of \[6, 64\]")
    refused(at("blockSize", 0), "in blocks of 0")
    refused(at("blockSize", 16), "has 12 parameters of blocks; expected 24: 6 × 4")
    refused(lambda w, _: setattr(w, "shape", [7, 64]), "'w' has 192 bytes; expected 224 for int4")
    refused(lambda w, _: setattr(w, "buffer", 44), "has no bytes of its own")
    refused(lambda w, _: setattr(w, "type", TYPES.STRING), "is of dtype string; expected one of")
    refused(lambda _, s: setattr(s, "shape", [-6, -2]), "has 24 bytes")

    path = channelwise(tmp_path / "c.tflite", "FULLY_CONNECTED", TYPES.INT8, 8, **PROJECTION)
    refused(
        lambda w, _: setattr(w.quantization, "quantizedDimension", 1),
        "has 6 scales and 6 zero points along axis 1",
    )
    refused(lambda w, _: setattr(w.quantization, "zeroPoint", [0, 0]), "6 scales and 2 zero points")
