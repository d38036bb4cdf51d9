"""Quantized files with one thing wrong: caught, with layer and tensor named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeverify import load_port, verify
from edgeverify.core.errors import ArtifactError
from edgeverify.core.leg import QUANTIZATION, Leg
from edgeverify.core.results import FAIL, PASS, UNCHECKED
from edgeverify.core.trace import Trace
from edgeverify.legs.quantization.leg import judge_file
from edgeverify.legs.quantization.weights import read_weights
from edgeverify.litert.flatbuffer import ModelFile, locate_taps
from edgeverify.litert.flatbuffer.instrument import write
from edgeverify.litert.flatbuffer.weights import find_weights
from edgeverify.litert.quantize import quantized
from edgeverify.litert.recipes import NAMED, Recipe, load_recipe
from edgeverify.suites.selftest.faults.catalogue import FAULTS

pytestmark = pytest.mark.slow
Get = Callable[..., "object"]
DOWN = "transformer_blocks.1.ff.w2.weight"
DOWN_OF_HF = "model.layers.1.mlp.down_proj.weight"


def _tensor(path: Path, name: str) -> tuple[ModelFile, int]:
    file = ModelFile(path)
    return file, find_weights(file, "decode", locate_taps(file, "decode")).tensors[name]


def _bytes_of(path: Path, file: ModelFile, tensor: int) -> np.memmap:
    raw = file.graph("decode").raw.tensors[tensor]
    first, count = file.buffer_span(raw.buffer)  # type: ignore[misc]
    return np.memmap(path, np.uint8, "r+", offset=first, shape=(count,))


def _told(audit) -> str:  # type: ignore[no-untyped-def]
    assert audit.outcome == FAIL
    return "\n".join(str(check) for check in audit.odd)


@pytest.mark.parametrize("recipe", [name for name in NAMED if not name.endswith("128")])
def test_right_files_pass(made: Get, recipe: str) -> None:
    port, rules = made("tinyllama"), load_recipe(recipe)  # type: ignore[operator]
    path = quantized(port.path, rules)
    assert port.audit(path, rules).outcome == PASS
    assert port.leg(path, rules).outcome == PASS


def test_the_scale_of_one_block_doubled(made: Get, tmp_path: Path) -> None:
    port, rules = made("tinyllama"), load_recipe("dynamic_int4_block32")  # type: ignore[operator]
    path = tmp_path / "x.tflite"
    shutil.copyfile(quantized(port.path, rules), path)
    file, tensor = _tensor(path, DOWN)
    details = file.graph("decode").raw.tensors[tensor].quantization.details
    scales = _bytes_of(path, file, details.scales).view(np.float16)
    blocks = file.graph("decode").shape(tensor)[1] // 32
    scales[5 * blocks + 1] *= 2
    scales.flush()
    told = _told(port.audit(path, rules))
    assert DOWN_OF_HF in told
    assert re.search(
        r"1 of \d+ scales do not fit their weights: row 5, block 1 \(columns 32 to 63\)", told
    )
    assert "(× 2)" in told
    assert told.count("scales do not fit") == 1, "another weight is named, too"


def test_a_pair_of_nibbles_swapped(made: Get, tmp_path: Path) -> None:
    port, rules = made("tinyllama"), load_recipe("dynamic_int4_block32")  # type: ignore[operator]
    path = tmp_path / "x.tflite"
    shutil.copyfile(quantized(port.path, rules), path)
    file, tensor = _tensor(path, DOWN)
    data = _bytes_of(path, file, tensor)
    at = next(i for i, byte in enumerate(data) if abs(int(byte >> 4) - int(byte & 15)) in (2, 3))
    data[at] = (data[at] << 4) | (data[at] >> 4)
    data.flush()
    told = _told(port.audit(path, rules))
    assert DOWN_OF_HF in told
    assert "2 of " in told
    width = file.graph("decode").shape(tensor)[1]
    assert f"the first in row {2 * at // width}, column {2 * at % width}:" in told


@pytest.mark.parametrize("factor", [1.5, 1.001])
def test_one_channel_s_scale_of_the_head_changed(made: Get, tmp_path: Path, factor: float) -> None:
    port, rules = made("tinyllama"), load_recipe("dynamic_int8")  # type: ignore[operator]
    path = tmp_path / "x.tflite"
    file = ModelFile(quantized(port.path, rules))
    for name in file.signatures:
        own = _tensor_of(file, name, "lm_head.weight")
        scale = np.array(file.graph(name).raw.tensors[own].quantization.scale, np.float32)
        scale[17] *= factor
        file.graph(name).raw.tensors[own].quantization.scale = scale
    write(file, path)
    told = _told(port.audit(path, rules))
    assert "lm_head.weight" in told
    assert re.search(rf"row 17: scale .* \(× {str(factor)[:4]}", told)
    assert "1 of " in told


def _tensor_of(file: ModelFile, signature: str, name: str) -> int:
    return find_weights(file, signature, locate_taps(file, signature)).tensors[name]


def test_the_reference_kernels_are_wrong_for_weights_in_blocks_and_seen_to_be(made: Get) -> None:
    """ai-edge-litert 2.3 takes such a file and gives wrong numbers without a word."""
    port, rules = made("tinyllama"), load_recipe("dynamic_int4_block32")  # type: ignore[operator]
    path = quantized(port.path, rules)
    with_kernel = replace(port.run, case=replace(port.run.case, kernel="reference"))
    leg = replace(port, run=with_kernel).leg(path, rules)
    assert leg.outcome == FAIL
    assert leg.first_divergence.tap == "prefill.0/blocks.0.attn.q"
    assert leg.first_divergence.error_ratio > 100


def test_blocks_of_128_where_the_widths_are_multiples_of_it() -> None:
    port = load_port("tinyllama")
    tiny = dict(port.hf_configs["tiny"])
    tiny |= {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64}
    wide = replace(port, hf_configs={**port.hf_configs, "tiny": tiny})
    report = verify(wide, size="tiny", recipes=("dynamic_int4_block128",), decode_steps=2)
    assert report.passed
    assert "int4 in blocks of 128" in "".join(
        report.audits["quantization:dynamic_int4_block128"].notes
    )


def test_a_file_that_the_runtime_refuses_costs_no_other_recipe_its_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(run: object, path: Path, weights: object, leg: Leg, *rest: object) -> object:
        if leg.recipe == "fp16":
            raise ArtifactError("the runtime cannot open it", where=path)
        return judge_file(run, path, weights, leg, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("edgeverify.legs.quantization.check.judge_file", refused)
    report = verify("tinyllama", recipes=("fp16", "dynamic_int8"))
    assert report.legs["quantization:fp16"].outcome == UNCHECKED
    assert "the runtime cannot open it" in report.legs["quantization:fp16"].reason
    assert report.legs["quantization:dynamic_int8"].outcome == PASS
    assert report.outcome == UNCHECKED


def test_a_width_that_is_no_multiple_of_the_block_is_unchecked_with_the_reason() -> None:
    report = verify("tinyllama", recipes=("dynamic_int4_block128",))
    leg = report.legs["quantization:dynamic_int4_block128"]
    assert leg.outcome == UNCHECKED
    assert "not divisible by block size 128" in leg.reason
    assert report.outcome == UNCHECKED
    assert report.to_dict()["legs"]["quantization"]["dynamic_int4_block128"]["outcome"] == UNCHECKED


def test_a_mix_by_layer_of_the_generative_api_names_no_operator(made: Get, tmp_path: Path) -> None:
    """litert-torch 0.10 looks for ``transformer_blocks[2]``; its own names have another form."""
    path = tmp_path / "mix.py"
    path.write_text(
        "from litert_torch.generative.quantize import quant_recipe, quant_recipe_utils as u\n"
        "MIX = quant_recipe.GenerativeQuantRecipe(\n"
        "    default=u.create_layer_quant_dynamic(),\n"
        "    feedforward={2: u.create_layer_quant_weight_only()},\n"
        ")\n"
    )
    port, rules = made("tinyllama"), load_recipe(f"{path}:MIX")  # type: ignore[operator]
    file = quantized(port.path, rules)
    assert file.read_bytes() == quantized(port.path, load_recipe("dynamic_int8")).read_bytes()
    told = _told(port.audit(file, rules))
    assert "rule 2, 'transformer_blocks\\\\[2\\\\]/" in told
    assert "so it changes nothing" in told


def _int8(regex: str) -> dict[str, object]:
    weight = {"num_bits": 8, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
    config = {
        "weight_tensor_config": weight,
        "compute_precision": "INTEGER",
        "explicit_dequantize": False,
    }
    return {
        "regex": regex,
        "operation": "*",
        "algorithm_key": "min_max_uniform_quantize",
        "op_config": config,
    }


def _recipe(tmp_path: Path, *rules: object) -> Recipe:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rules))
    return load_recipe(str(path))


def test_a_layer_left_in_float_by_a_wrong_regular_expression(made: Get, tmp_path: Path) -> None:
    port = made("tinyllama")  # type: ignore[operator]
    rules = _recipe(tmp_path, _int8("TransformerBlock_[01]/"), _int8("lm_head|tok_embedding"))
    audit = port.audit(quantized(port.path, rules), rules)
    told = _told(audit)
    assert "transformer_blocks.2.ff.w2.weight" in told
    assert "was left in float32, where 2 blocks have int8 by channel, and no rule" in told
    assert not re.search(r"transformer_blocks\.[01]\.", told)


def test_a_layer_that_a_rule_leaves_in_float_is_meant(made: Get, tmp_path: Path) -> None:
    port = made("tinyllama")  # type: ignore[operator]
    no = {"regex": "TransformerBlock_2/", "operation": "*", "algorithm_key": "no_quantize"}
    rules = _recipe(tmp_path, _int8(".*"), no)
    path = quantized(port.path, rules)
    audit = port.audit(path, rules)
    assert audit.outcome == PASS
    assert port.leg(path, rules).outcome == PASS


def test_a_recipe_that_quantizes_nothing_is_a_failure(made: Get, tmp_path: Path) -> None:
    port = made("tinyllama")  # type: ignore[operator]
    rules = _recipe(tmp_path, {**_int8(".*"), "operation": "CONV_2D"})
    told = _told(port.audit(port.path, rules))
    assert "expected quantized weights, found float32: the recipe has quantized nothing" in told
    no = {"regex": ".*", "operation": "*", "algorithm_key": "no_quantize"}
    assert port.audit(port.path, _recipe(tmp_path, no)).outcome == PASS


def test_a_file_without_the_right_logits_fails_without_an_attribution(made: Get) -> None:
    port, rules = made("tinyllama"), load_recipe("dynamic_int8")  # type: ignore[operator]
    file = quantized(port.path, rules)
    weights = read_weights(
        file,
        port.run.hf_config,
        port.run.model().config,
        {name: tuple(tensor.shape) for name, tensor in port.run.state().items()},
    )

    def cut(run: object, path: Path, oracle: Trace) -> tuple[Trace, None]:
        arrays = {
            key: array[..., :-1].astype(np.float32) if key.endswith("logits") else array
            for key, array in oracle.arrays.items()
        }
        return Trace(arrays), None

    leg = judge_file(port.run, file, weights, Leg(QUANTIZATION, "x"), port.baseline, cut).leg
    assert leg.outcome == FAIL
    assert leg.attribution == {}


def test_a_rule_that_fits_nothing_is_a_failure(made: Get, tmp_path: Path) -> None:
    port = made("tinyllama")  # type: ignore[operator]
    rules = _recipe(tmp_path, _int8(".*"), _int8(r"transformer_blocks\[2\]/"))
    told = _told(port.audit(quantized(port.path, rules), rules))
    assert "rule 2" in told
    assert "fits the name of no operator" in told


def test_a_file_of_another_recipe_is_named(made: Get) -> None:
    port = made("tinyllama")  # type: ignore[operator]
    path = quantized(port.path, load_recipe("dynamic_int8"))
    told = _told(port.audit(path, load_recipe("dynamic_int4_block32")))
    assert "expected int4 in blocks of 32, found int8 by channel" in told


def test_a_zero_scale_is_named(made: Get, tmp_path: Path) -> None:
    port, rules = made("tinyllama"), load_recipe("dynamic_int4_block32")  # type: ignore[operator]
    path = tmp_path / "x.tflite"
    shutil.copyfile(quantized(port.path, rules), path)
    file, tensor = _tensor(path, DOWN)
    details = file.graph("decode").raw.tensors[tensor].quantization.details
    scales = _bytes_of(path, file, details.scales).view(np.float16)
    scales[0] = 0
    scales.flush()
    told = _told(port.audit(path, rules))
    assert re.search(r": 1 of \d+ scales are zero, negative or not finite: row 0, block 0", told)


@pytest.mark.parametrize(
    "name",
    [
        "file_rope_frequencies_in_float16",
        "file_score_scale_attribute",
        "file_values_cut_from_the_keys",
        "file_residual_from_before_attention",
        "file_decode_writes_row_0",
        "file_cache_outputs_k_and_v_exchanged",
    ],
)
def test_what_a_converter_does_wrong_is_seen_through_int8(
    made: Get, tmp_path: Path, name: str
) -> None:
    """Some of it is far less than an int8 step: only the control can see that."""
    port, rules = made("tinyllama"), load_recipe("dynamic_int8")  # type: ignore[operator]
    fault = next(fault for fault in FAULTS if fault.name == name)
    path = tmp_path / "x.tflite"
    assert fault.file is not None
    fault.file(quantized(port.path, rules), path)
    stated = {"query scale"} if name == "file_score_scale_attribute" else set()
    assert {check.item for check in port.audit(path, rules).odd} == stated, "its weights are right"
    leg = port.leg(path, rules)
    assert leg.outcome == FAIL
    wanted = [w.replace("*", str(i)) for w in fault.where for i in (range(3) if "*" in w else [0])]
    assert set(leg.first_divergence.isolated) == set(wanted)


@pytest.mark.parametrize("name", ["file_residual_commuted", "file_constant_stored_twice"])
def test_what_changes_nothing_is_not_reported(made: Get, tmp_path: Path, name: str) -> None:
    port, rules = made("tinyllama"), load_recipe("dynamic_int8")  # type: ignore[operator]
    fault = next(fault for fault in FAULTS if fault.name == name)
    path = tmp_path / "x.tflite"
    assert fault.file is not None
    fault.file(quantized(port.path, rules), path)
    assert port.audit(path, rules).outcome == PASS
    assert port.leg(path, rules).outcome == PASS


@pytest.mark.parametrize("recipe", ["dynamic_int8", "dynamic_int4_block32"])
def test_the_file_is_litert_torch_s_own_byte_by_byte(
    made: Get, tmp_path: Path, recipe: str
) -> None:
    """A conversion with the recipe, against quantizing the float file."""
    import litert_torch
    import torch
    from litert_torch.generative.utilities.converter import ExportableModule
    from litert_torch.generative.utilities.export_config import ExportConfig

    from edgeverify.core.quiet import quiet
    from edgeverify.litert.convert import LAYOUTS, sample_inputs
    from edgeverify.litert.recipes import _named

    port = made("tinyllama")  # type: ignore[operator]
    run, case = port.run, port.run.case
    config = ExportConfig(output_logits_on_prefill=True, kvcache_layout=LAYOUTS[case.kv_layout])
    exportable = ExportableModule(run.model(), export_config=config).eval()
    converter = None
    for name, length in case.signatures.items():
        inputs = sample_inputs(run.model().config, case, length)
        add = litert_torch.signature if converter is None else converter.signature
        converter = add(name, exportable, sample_kwargs=inputs)
    path = tmp_path / "own.tflite"
    with quiet(), torch.no_grad():
        own = converter.convert(lightweight_conversion=True, quant_config=_named()[recipe]())
        own.export(str(path))
    assert path.read_bytes() == quantized(port.path, load_recipe(recipe)).read_bytes()
