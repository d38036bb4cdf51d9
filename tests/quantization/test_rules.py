"""What rules of a user's own promise, and files that keep another promise than theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeverify.audits.constants import find_weights
from edgeverify.flatbuffer import ModelFile, locate_taps
from edgeverify.flatbuffer.instrument import write
from edgeverify.quantize import quantized
from edgeverify.recipes import Recipe, load_recipe
from edgeverify.report.model import FAIL, PASS

pytestmark = pytest.mark.slow
Get = Callable[..., "object"]
DOWN = "transformer_blocks.1.ff.w2.weight"
DOWN_OF_HF = "model.layers.1.mlp.down_proj.weight"


def _recipe(folder: Path, *, operation: str = "*", algorithm: str = "", **config: object) -> Recipe:
    """One rule, for int8 by channel unless it is said otherwise."""
    weight = {"num_bits": 8, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
    weight |= {key: config.pop(key) for key in list(config) if key in weight}
    given = {"compute_precision": "INTEGER", "explicit_dequantize": False, **config}
    rule = {
        "regex": ".*",
        "operation": operation,
        "algorithm_key": algorithm or "min_max_uniform_quantize",
        "op_config": {"weight_tensor_config": weight, **given},
    }
    path = folder / "mine.json"
    path.write_text(json.dumps([rule]))
    return load_recipe(str(path))


def _told(audit) -> str:  # type: ignore[no-untyped-def]
    assert audit.outcome == FAIL
    return "\n".join(str(check) for check in audit.odd)


def _held(file: ModelFile, signature: str):  # type: ignore[no-untyped-def]
    tensor = find_weights(file, signature, locate_taps(file, signature)).tensors[DOWN]
    return file.graph(signature).raw.tensors[tensor]


def _changed(source: Path, target: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """A copy in which the bytes of one weight are others."""
    shutil.copyfile(source, target)
    file = ModelFile(source)
    first, count = file.buffer_span(_held(file, "decode").buffer)  # type: ignore[misc]
    data = np.memmap(target, np.int8, "r+", offset=first, shape=(count,))
    data[:] = change(np.array(data))
    data.flush()


@pytest.mark.parametrize(
    ("named", "made_by"),
    [("dynamic_int8", "weight_only_int8"), ("weight_only_int8", "dynamic_int8")],
)
def test_integers_that_are_dequantized_first_are_told_from_others(
    made: Get, named: str, made_by: str
) -> None:
    """The weights of the two are the same, and so is what the leg holds each to."""
    port = made("tinyllama")  # type: ignore[operator]
    told = _told(port.audit(quantized(port.path, load_recipe(made_by)), load_recipe(named)))
    ways = ["integers taken as they are", "integers dequantized first"]
    expected, found = ways if named == "dynamic_int8" else reversed(ways)
    assert f"{DOWN}, decode): expected {expected}, found {found}" in told


@pytest.mark.parametrize("signature", ["prefill_16", "prefill_32", "decode"])
def test_a_scale_that_is_wrong_in_one_signature_alone(
    made: Get, tmp_path: Path, signature: str
) -> None:
    """Signatures share a weight's bytes, but each has scales of its own."""
    port, rules = made("tinyllama"), load_recipe("weight_only_int8")  # type: ignore[operator]
    file = ModelFile(quantized(port.path, rules))
    held = _held(file, signature).quantization
    scales = np.array(held.scale, np.float32)
    scales[5] *= 2
    held.scale = scales
    write(file, tmp_path / "x.tflite")
    told = _told(port.audit(tmp_path / "x.tflite", rules))
    assert DOWN_OF_HF in told
    assert f"{DOWN}, {signature}" in told or signature == "prefill_16"
    assert "row 5: scale" in told


def test_a_tied_table_that_is_quantized_for_the_embedding_alone(made: Get, tmp_path: Path) -> None:
    port = made("openelm")  # type: ignore[operator]
    rules = _recipe(tmp_path, operation="EMBEDDING_LOOKUP")
    path = quantized(port.path, rules)
    assert port.audit(path, rules).outcome == PASS
    assert port.leg(path, rules).outcome == PASS
