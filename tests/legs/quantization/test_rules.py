"""What rules of a user's own promise, and files that keep another promise than theirs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flatbuffers import flexbuffers

from edgeverify.audits.promises import Promises
from edgeverify.core.errors import RecipeError
from edgeverify.core.results import FAIL, PASS
from edgeverify.litert.flatbuffer import ModelFile, locate_taps
from edgeverify.litert.flatbuffer.instrument import write
from edgeverify.litert.flatbuffer.weights import find_weights
from edgeverify.litert.quantize import quantized
from edgeverify.litert.recipes import Recipe, load_recipe

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


def test_a_zero_point_in_a_symmetric_file(made: Get, tmp_path: Path) -> None:
    """The stored integers move with it, so that they stand for the same weights."""
    port, rules = made("tinyllama"), load_recipe("dynamic_int8")  # type: ignore[operator]
    moved = tmp_path / "moved.tflite"
    _changed(quantized(port.path, rules), moved, lambda stored: stored - 1)  # -127 is the lowest
    file = ModelFile(moved)
    for name in file.signatures:
        held = _held(file, name).quantization
        held.zeroPoint = np.full(len(held.scale), -1, np.int64)
    write(file, tmp_path / "x.tflite")
    told = _told(port.audit(tmp_path / "x.tflite", rules))
    assert re.search(
        r"(\d+) of \1 zero points are not 0, as a symmetric recipe has it: row 0", told
    )


@pytest.mark.parametrize("algorithm", ["OCTAV", "MSE"])
def test_scales_that_cut_the_largest_weights_off(made: Get, tmp_path: Path, algorithm: str) -> None:
    port = made("tinyllama")  # type: ignore[operator]
    rules = _recipe(tmp_path, algorithm=algorithm, num_bits=4)
    path = quantized(port.path, rules)
    assert port.audit(path, rules).outcome == PASS

    def off_by_one(data: np.ndarray) -> np.ndarray:
        data[int(np.flatnonzero((data & 15) == 2)[0])] += 1
        return data

    _changed(path, tmp_path / "x.tflite", off_by_one)
    told = _told(port.audit(tmp_path / "x.tflite", rules))
    assert re.search(r": 1 of \d+ values are more than half a step", told)


def test_weights_that_do_not_stand_around_zero(made: Get, tmp_path: Path) -> None:
    port = made("tinyllama")  # type: ignore[operator]
    widened = {"compute_precision": "FLOAT", "explicit_dequantize": True}
    rules = _recipe(tmp_path, symmetric=False, **widened)
    path = quantized(port.path, rules)
    assert port.audit(path, rules).outcome == PASS
    assert "zero points are not 0" in _told(port.audit(path, load_recipe("weight_only_int8")))


def test_a_layer_too_small_for_the_recipe_is_meant_to_stay_in_float(
    made: Get, tmp_path: Path
) -> None:
    port = made("tinyllama")  # type: ignore[operator]
    rules = _recipe(tmp_path, min_weight_elements=20_000)
    path = quantized(port.path, rules)
    assert port.audit(path, rules).outcome == PASS
    assert DOWN in _told(port.audit(path, load_recipe("dynamic_int8")))


def test_a_tied_table_that_is_quantized_for_the_embedding_alone(made: Get, tmp_path: Path) -> None:
    port = made("openelm")  # type: ignore[operator]
    rules = _recipe(tmp_path, operation="EMBEDDING_LOOKUP")
    path = quantized(port.path, rules)
    assert port.audit(path, rules).outcome == PASS
    assert port.leg(path, rules).outcome == PASS


def test_rules_that_change_nothing_are_refused(made: Get, tmp_path: Path) -> None:
    """The quantizer writes the float file again."""
    port = made("tinyllama")  # type: ignore[operator]
    with pytest.raises(RecipeError) as caught:
        quantized(port.path, _recipe(tmp_path, operation="CONV_2D"), cache=tmp_path)
    assert str(caught.value) == (
        "recipe mine: quantizes nothing: none of its rules fits an operator of the file that it "
        "can be applied to; expected rules for FULLY_CONNECTED or EMBEDDING_LOOKUP, which hold the "
        "weights, or *; correct the rules' operation and regex: edgeverify inspect shows the "
        "operators"
    )
    no = {"regex": ".*", "operation": "*", "algorithm_key": "no_quantize"}
    assert quantized(port.path, Recipe("in_float", (no,)), cache=tmp_path).exists()


def test_a_rule_that_the_quantizer_refuses_is_told(tmp_path: Path) -> None:
    """A file that is said to be made by it may be audited without ever being quantized here."""
    with pytest.raises(RecipeError, match=r"recipe mine: holds a rule that cannot be applied \("):
        Promises(_recipe(tmp_path, operation="FULLY_CONNECTED", num_bits=3))


@pytest.mark.parametrize("kernel", ["builtin", "reference"])
def test_a_file_may_ask_for_activations_that_do_not_stand_around_zero(
    made: Get, tmp_path: Path, kernel: str
) -> None:
    """Older converters set that attribute; LiteRT's own kernels heed it, XNNPACK does not."""
    port, rules = made("tinyllama"), load_recipe("dynamic_int8")  # type: ignore[operator]
    file = ModelFile(quantized(port.path, rules))
    for graph in file.model.subgraphs:
        for op in graph.operators:
            if hasattr(op.builtinOptions, "asymmetricQuantizeInputs"):
                op.builtinOptions.asymmetricQuantizeInputs = True
    write(file, tmp_path / "x.tflite")
    run = replace(port.run, case=replace(port.run.case, kernel=kernel))
    leg = replace(port, run=run).leg(tmp_path / "x.tflite", rules)
    assert leg.outcome == PASS, leg


@pytest.mark.parametrize("signature", ["prefill_16", "decode"])
def test_an_epsilon_that_no_kernel_of_the_cpu_reads(
    made: Get, tmp_path: Path, signature: str
) -> None:
    port, rules = made("tinyllama"), load_recipe("dynamic_int8")  # type: ignore[operator]
    file = ModelFile(quantized(port.path, rules))
    norm = [op for op in file.graph(signature).ops if op.name == "odml.rms_norm"][2]
    stated = file.graph(signature).raw.operators[norm.index].builtinOptions2
    said = dict(flexbuffers.Loads(bytes(bytearray(stated.compositeAttributes))))
    stated.compositeAttributes = np.frombuffer(
        flexbuffers.Dumps({**said, "epsilon": 2 * said["epsilon"]}), np.uint8
    )
    write(file, tmp_path / "x.tflite")
    assert port.leg(tmp_path / "x.tflite", rules).outcome == PASS, "a kernel reads it now"
    audit = port.audit(tmp_path / "x.tflite", rules)
    assert audit.outcome == FAIL
    (check,) = audit.odd
    assert (check.item, check.where) == ("attention norm eps", f"file, {signature}, block 1")


def test_a_rule_for_operators_that_its_layers_do_not_have(made: Get, tmp_path: Path) -> None:
    port = made("tinyllama")  # type: ignore[operator]
    rules = [
        {"regex": ".*", "operation": "*", "algorithm_key": "no_quantize"},
        {"regex": "FeedForward", "operation": "CONV_2D", "algorithm_key": "no_quantize"},
    ]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rules))
    told = _told(port.audit(port.path, load_recipe(str(path))))
    assert "rule 2, 'FeedForward'" in told
    assert "rule 1" not in told
