"""Faults of the converted file: a constant, a link, an operator's option, a signature."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers  # type: ignore[import-untyped]

from edgeverify.suites.selftest.faults.fault import Faults
from edgeverify.suites.selftest.faults.file_changes import (
    Place,
    change_constant,
    exchange_inputs,
    replace_inputs,
    rewire,
    share_buffer,
)
from edgeverify.suites.selftest.faults.ports import GATED, GEMMA, LLAMA, RMS, UNIFORM

FAULTS = Faults("converter", changes="file")
FC = "FULLY_CONNECTED"
ATTENTION = "odml.scaled_dot_product_attention"
NORMS = ("odml.rms_norm", "odml.group_norm")
ATTRIBUTE_SOURCE = "litert-torch #914"
rewire_decode = partial(rewire, only="decode")


def _constant(find: Callable[[Place], int]) -> Callable[..., None]:
    """``change_constant`` of one constant, for ``FAULTS.add(via=...)``."""
    return partial(change_constant, find=find)


def _weight_of(place: Place, tap: str) -> int:
    """The weight of the projection that makes a tap."""
    return place.constant_of(place.maker(tap, FC))


def _weight(tap: str) -> Callable[..., None]:
    return _constant(lambda place: _weight_of(place, tap))


def _factor_before(place: Place, tensor: int) -> int:
    """The constant that the op before a tensor multiplies with."""
    op = place.graph.producer[tensor]
    assert op.name == "MUL"
    return place.constant_of(op)


def _first(place: Place, kind: str) -> Any:
    return next(op for op in place.graph.ops if op.name == kind)


def _entry(place: Place, side: str, name: str) -> Any:
    """An input or output of the signature, as its definition lists it."""
    entries = getattr(place.file.model.signatureDefs[place.signature.position], side)
    return next(entry for entry in entries if entry.name == name.encode())


def _exchange_entries(place: Place, side: str, *names: str) -> None:
    first, second = (_entry(place, side, name) for name in names)
    first.tensorIndex, second.tensorIndex = second.tensorIndex, first.tensorIndex


def _share_weight_of_block_0(place: Place, tap: str) -> None:
    share_buffer(place, *(_weight_of(place, f"blocks.{index}.{tap}") for index in (1, 0)))


def _norm_weight(place: Place, index: int) -> int:
    return place.constant_of(place.maker(f"blocks.{index}.attn_norm", *NORMS))


def _scale_attribute(place: Place, name: str, factor: float) -> None:
    """An attribute of block 1's attention composite is multiplied, where it stands."""
    composite = place.raw(place.user("blocks.1.attn.q", ATTENTION)).builtinOptions2
    data = bytes(composite.compositeAttributes)
    before = np.float32(flexbuffers.Loads(data)[name])
    assert data.count(before.tobytes()) == 1, f"{name} is not stored once as float32"
    data = data.replace(before.tobytes(), np.float32(before * factor).tobytes())
    composite.compositeAttributes = np.frombuffer(data, np.uint8)


@FAULTS.add("one weight off by 1 %", via=_weight("blocks.2.attn.out"), where="blocks.2.attn.out")
def file_weight_one_percent_off(values: np.ndarray) -> np.ndarray:
    """One weight of block 2's output projection is 1 % too large."""
    values.flat[7] *= np.float32(1.01)
    return values


@FAULTS.add("weight rows permuted", via=_weight("blocks.0.ff.out"), where="blocks.0.ff.out")
def file_weight_rows_rolled(values: np.ndarray) -> np.ndarray:
    """The rows of block 0's down projection belong to the next channel."""
    return np.roll(values, 1, 0)


@FAULTS.add(
    "non-contiguous constant",
    via=_weight("blocks.1.attn.out"),
    where="blocks.1.attn.out",
    source="litert-torch #1238",
)
def file_constant_written_transposed(values: np.ndarray) -> np.ndarray:
    """Block 1's output projection is written in the order of its transpose."""
    return values.T.reshape(values.shape)


@FAULTS.add(
    "down projection rounded to float16", via=_weight("blocks.2.ff.out"), where="blocks.2.ff.out"
)
def file_constant_in_float16(values: np.ndarray) -> np.ndarray:
    """Block 2's down projection went through float16."""
    return values.astype(np.float16).astype(np.float32)


@FAULTS.add("constant zeroed", via=_weight("blocks.1.ff.out"), where="blocks.1.ff.out")
def file_constant_zeroed(values: np.ndarray) -> np.ndarray:
    """Block 1's down projection is zero."""
    return np.zeros_like(values)


@FAULTS.add("constant scaled", via=_weight("blocks.2.attn.v"), where="blocks.2.attn.q")
def file_qkv_scaled(values: np.ndarray) -> np.ndarray:
    """Block 2's fused projection is 0.1 % too large."""
    return values * np.float32(1.001)


@FAULTS.add(
    "embedding rows permuted",
    via=_constant(lambda place: _first(place, "EMBEDDING_LOOKUP").inputs[1]),
    ports="tinyllama phi2",
    where="embed",
)
def file_embedding_rows_rolled(values: np.ndarray) -> np.ndarray:
    """The rows of the embedding table belong to the next token."""
    return np.roll(values, 1, 0)


@FAULTS.add(
    "embedding scale truncated",
    via=_constant(lambda place: _factor_before(place, place.taps["embed"])),
    ports=GEMMA,
    where="embed",
    source="litert-torch 7f3cdc2",
)
def file_embedding_scale_cast_to_int(values: np.ndarray) -> np.ndarray:
    """Gemma's factor sqrt(hidden_size) is cast to an integer."""
    return np.trunc(values)


@FAULTS.add(
    "RoPE frequencies in float16",
    via=_constant(lambda place: _factor_before(place, _first(place, "COS").inputs[0])),
    where="blocks.*.attn.q",
)
def file_rope_frequencies_in_float16(values: np.ndarray) -> np.ndarray:
    """The constant of RoPE's frequencies went through float16."""
    return values.astype(np.float16).astype(np.float32)


@FAULTS.add(
    "causal mask off by one",
    via=_constant(lambda place: _first(place, "GATHER_ND").inputs[0]),
    ports=(*LLAMA, "gemma1", "phi2", "openelm"),
    where="blocks.*.attn.out",
)
def file_mask_sees_one_ahead(mask: np.ndarray) -> np.ndarray:
    """In the constant mask each row sees one more column."""
    rows = np.arange(len(mask) - 1)
    mask[rows, 0, 0, rows + 1] = 0
    return mask


@FAULTS.add(
    "final softcap constant",
    via=_constant(lambda place: _factor_before(place, place.signature.outputs["logits"])),
    ports="gemma2",
    where="logits",
)
def file_final_softcap_scaled(values: np.ndarray) -> np.ndarray:
    """The constant behind Gemma 2's last tanh is 1 % too large."""
    return values * np.float32(1.01)


@FAULTS.add(
    "output projection bias left out",
    via=_constant(lambda place: place.maker("blocks.1.attn.out", FC).inputs[2]),
    ports="phi2",
    where="blocks.1.attn.out",
)
def file_bias_zeroed(values: np.ndarray) -> np.ndarray:
    """The bias of block 1's output projection is zero."""
    return np.zeros_like(values)


@FAULTS.add("wrong buffer", via=rewire, ports=UNIFORM, where="blocks.1.attn.out")
def file_buffer_of_another_layer(place: Place) -> None:
    """Block 1's output projection reads block 0's buffer."""
    _share_weight_of_block_0(place, "attn.out")


@FAULTS.add("wrong buffer", via=rewire, where="blocks.1.attn_norm")
def file_norm_of_another_layer(place: Place) -> None:
    """Block 1's first norm reads block 0's weight."""
    share_buffer(place, _norm_weight(place, 1), _norm_weight(place, 0))


@FAULTS.add(
    "wrong buffer in one signature",
    via=rewire_decode,
    ports=UNIFORM,
    where="blocks.1.ff.out",
    step="decode.0",
    source="litert-torch aae021e",
)
def file_buffer_of_another_layer_in_decode(place: Place) -> None:
    """In the decode signature alone, block 1's down projection reads block 0's buffer."""
    _share_weight_of_block_0(place, "ff.out")


@FAULTS.add("score scale attribute", via=rewire, where="blocks.1.attn.out", source=ATTRIBUTE_SOURCE)
def file_score_scale_attribute(place: Place) -> None:
    """The scale in block 1's attention composite is 1 % too large."""
    _scale_attribute(place, "scale", 1.01)


@FAULTS.add(
    "score softcap attribute",
    via=rewire,
    ports="gemma2",
    where="blocks.1.attn.out",
    source=ATTRIBUTE_SOURCE,
)
def file_score_cap_attribute(place: Place) -> None:
    """The cap in block 1's attention composite is 5 % too large."""
    _scale_attribute(place, "logit_cap", 1.05)


@FAULTS.add("operands exchanged", via=rewire, where="blocks.1.attn.q")
def file_rope_subtracts_the_other_way(place: Place) -> None:
    """The operands of a subtraction in block 1's RoPE of q are exchanged."""
    exchange_inputs(place, place.between("blocks.1.attn_norm", "blocks.1.attn.q", "SUB")[0])


@FAULTS.add("operands exchanged", via=rewire, where="blocks.1.attn.k")
def file_rope_halves_exchanged(place: Place) -> None:
    """The halves of block 1's k are joined in the other order."""
    joins = place.between("blocks.1.attn_norm", "blocks.1.attn.k", "CONCATENATION")
    exchange_inputs(place, joins[0])


@FAULTS.add("gate and up exchanged", via=rewire, ports=GATED, where="blocks.1.ff.out")
def file_gate_and_up_exchanged(place: Place) -> None:
    """Block 1's gate and up read each other's weights."""
    gate, up, *_ = place.between("blocks.1.ff_norm", "blocks.1.ff.out", FC)
    gate_weight, up_weight = gate.inputs[1], up.inputs[1]
    replace_inputs(place, gate, {1: up_weight})
    replace_inputs(place, up, {1: gate_weight})


@FAULTS.add("slice offset", via=rewire, where="blocks.1.attn.v")
def file_values_cut_from_the_keys(place: Place) -> None:
    """Block 1's v is cut out of the fused projection where k begins."""
    keys = place.between("blocks.1.attn_norm", "blocks.1.attn.k", "SLICE")[0]
    values = place.maker("blocks.1.attn.v", "SLICE")
    replace_inputs(place, values, {1: keys.inputs[1]})


@FAULTS.add("residual reads another tensor", via=rewire, where="blocks.1.out")
def file_residual_from_before_attention(place: Place) -> None:
    """Block 1's last addition reads what entered the block, not the sum with attention."""
    op = place.maker("blocks.1.out")
    after = place.graph.descendants(place.taps["blocks.1.ff.out"])
    position = next(i for i, tensor in enumerate(op.inputs) if tensor not in after)
    replace_inputs(place, op, {position: place.taps["blocks.0.out"]})


@FAULTS.add("activation fused", via=rewire, where="blocks.1.attn.out")
def file_relu_fused(place: Place) -> None:
    """A ReLU is fused into block 1's output projection."""
    options = place.raw(place.maker("blocks.1.attn.out", FC)).builtinOptions
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU


@FAULTS.add(
    "activation erf GELU for tanh GELU",
    via=rewire,
    ports=(*GEMMA, "phi2"),
    where="blocks.*.ff.out",
    source="litert-torch: composite's attribute says tanh, its body computes erf",
)
def file_exact_gelu(place: Place) -> None:
    """The GELU operators compute the exact form instead of the tanh form."""
    for op in place.graph.ops:
        if op.name == "GELU":
            place.raw(op).builtinOptions.approximate = False


@FAULTS.add("cache row", via=rewire_decode, where="blocks.*.attn.out", step="decode.0")
def file_decode_writes_row_0(place: Place) -> None:
    """The decode signature writes every row of the cache to row 0."""
    for op in place.graph.ops:
        if op.name == "PACK" and len(op.inputs) == 4:
            replace_inputs(place, op, {1: op.inputs[0]})


@FAULTS.add("signature outputs exchanged", via=rewire_decode, where="kv.0.k", step="decode.0")
def file_cache_outputs_k_and_v_exchanged(place: Place) -> None:
    """Decode returns block 0's K as V and the reverse."""
    _exchange_entries(place, "outputs", "kv_cache_k_0", "kv_cache_v_0")


@FAULTS.add(
    "signature outputs exchanged",
    via=partial(rewire, only="prefill_16"),
    ports=UNIFORM,
    where="kv.0.k kv.1.k",
    step="prefill.0",
)
def file_cache_outputs_of_two_layers_exchanged(place: Place) -> None:
    """A prefill returns block 0's K for block 1 and the reverse."""
    _exchange_entries(place, "outputs", "kv_cache_k_0", "kv_cache_k_1")


@FAULTS.add(
    "signature inputs exchanged",
    via=rewire_decode,
    ports=UNIFORM,
    where="blocks.0.attn.out blocks.1.attn.out",
    step="decode.0",
)
def file_cache_inputs_of_two_layers_exchanged(place: Place) -> None:
    """Decode takes block 1's K for block 0 and the reverse.

    Each block writes its own.
    """
    _exchange_entries(place, "inputs", "kv_cache_k_0", "kv_cache_k_1")


@FAULTS.add("signature name", via=rewire_decode, refusal="has no signature 'decode'")
def file_signature_missing(place: Place) -> None:
    """The decode signature has another name."""
    place.file.model.signatureDefs[place.signature.position].signatureKey = b"decode_1"


@FAULTS.add("file cut short", refusal="cannot be read as a .tflite")
def file_cut_short(source: Path, target: Path) -> None:
    """The second half of the file is missing."""
    data = source.read_bytes()
    target.write_bytes(data[: len(data) // 2])


@FAULTS.add(
    "one weight off by one ulp",
    via=_weight("blocks.2.attn.out"),
    where="blocks.2.attn.out",
    unseen="a relative 1.2e-7 of one product in a sum of 100 and more is below what rounding "
    "does to every row; only the exact comparison of the weights can see it",
)
def file_weight_one_ulp_off(values: np.ndarray) -> np.ndarray:
    """One weight of block 2's output projection is off by one unit in the last place."""
    values.flat[7] *= np.float32(1 + 2.0**-23)
    return values


@FAULTS.add(via=rewire, harmless="addition commutes, in float32, too")
def file_residual_commuted(place: Place) -> None:
    """The operands of block 1's last addition are exchanged."""
    exchange_inputs(place, place.maker("blocks.1.out"))


@FAULTS.add(via=rewire, ports=RMS, harmless="multiplication commutes, in float32, too")
def file_gate_times_up_commuted(place: Place) -> None:
    """The operands of block 1's last multiplication are exchanged."""
    exchange_inputs(place, place.between("blocks.1.ff_norm", "blocks.1.ff.out", "MUL")[-1])


@FAULTS.add(via=rewire, harmless="the same values in another place")
def file_constant_stored_twice(place: Place) -> None:
    """The weight of block 1's norm has a buffer of its own in every signature."""
    tensor = place.graph.raw.tensors[_norm_weight(place, 1)]
    buffers = place.file.model.buffers
    buffers.append(copy.copy(buffers[tensor.buffer]))
    tensor.buffer = len(buffers) - 1
