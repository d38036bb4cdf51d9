"""Faults of the converted file: a constant, a link, an operator's option, a signature."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers  # type: ignore[import-untyped]

from edgeverify.suites.selftest.faults.fault import REFUSED, Fault
from edgeverify.suites.selftest.faults.files import (
    Place,
    changed_constant,
    exchange_inputs,
    replace_inputs,
    rewired,
    share_buffer,
)
from edgeverify.suites.selftest.faults.ports import ALL, GATED, GEMMA, LLAMA, UNIFORM

FC = "FULLY_CONNECTED"
ATTENTION = "odml.scaled_dot_product_attention"
NORMS = ("odml.rms_norm", "odml.group_norm")


def _weight(tap: str) -> Callable[[Place], int]:
    """The weight of the projection that makes a tap."""
    return lambda place: place.constant_of(place.maker(tap, FC))


def _bias(tap: str) -> Callable[[Place], int]:
    return lambda place: place.maker(tap, FC).inputs[2]


def _table(place: Place) -> int:
    op = next(op for op in place.graph.ops if op.name == "EMBEDDING_LOOKUP")
    return op.inputs[1]


def _scalar(place: Place, tensor: int) -> int:
    """The constant that the op before a tensor multiplies with."""
    op = place.graph.producer[tensor]
    assert op.name == "MUL"
    return place.constant_of(op)


def _frequencies(place: Place) -> int:
    op = next(op for op in place.graph.ops if op.name == "COS")
    return _scalar(place, op.inputs[0])


def _mask(place: Place) -> int:
    return next(op for op in place.graph.ops if op.name == "GATHER_ND").inputs[0]


def _scaled(index: int, factor: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values.flat[index] *= np.float32(factor)
        return values

    return change


def _written_transposed(values: np.ndarray) -> np.ndarray:
    return values.T.reshape(values.shape)


def _seen_ahead(mask: np.ndarray) -> np.ndarray:
    rows = np.arange(len(mask) - 1)
    mask[rows, 0, 0, rows + 1] = 0
    return mask


def _buffer_of_block_0(tap: str) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        mine = _weight(f"blocks.1.{tap}")(place)
        share_buffer(place, mine, _weight(f"blocks.0.{tap}")(place))

    return change


def _norm_of_block_0(place: Place) -> None:
    norms = [place.maker(f"blocks.{index}.attn_norm", *NORMS) for index in (1, 0)]
    mine, other = (place.constant_of(norm) for norm in norms)
    share_buffer(place, mine, other)


def _attribute(name: str, factor: float) -> Callable[[Place], None]:
    """An attribute of block 1's attention composite is multiplied, where it stands."""

    def change(place: Place) -> None:
        composite = place.raw(place.user("blocks.1.attn.q", ATTENTION)).builtinOptions2
        data = bytes(composite.compositeAttributes)
        before = np.float32(flexbuffers.Loads(data)[name])
        assert data.count(before.tobytes()) == 1, f"{name} is not stored once as float32"
        data = data.replace(before.tobytes(), np.float32(before * factor).tobytes())
        composite.compositeAttributes = np.frombuffer(data, np.uint8)

    return change


def _subtracted_the_other_way(place: Place) -> None:
    exchange_inputs(place, place.between("blocks.1.attn_norm", "blocks.1.attn.q", "SUB")[0])


def _halves_joined_the_other_way(place: Place) -> None:
    joins = place.between("blocks.1.attn_norm", "blocks.1.attn.k", "CONCATENATION")
    exchange_inputs(place, joins[0])


def _gate_and_up(place: Place) -> None:
    gate, up, *_ = place.between("blocks.1.ff_norm", "blocks.1.ff.out", FC)
    gate_weight, up_weight = gate.inputs[1], up.inputs[1]
    replace_inputs(place, gate, {1: up_weight})
    replace_inputs(place, up, {1: gate_weight})


def _values_from_the_keys_rows(place: Place) -> None:
    keys = place.between("blocks.1.attn_norm", "blocks.1.attn.k", "SLICE")[0]
    values = place.maker("blocks.1.attn.v", "SLICE")
    replace_inputs(place, values, {1: keys.inputs[1]})


def _residual_from_before_attention(place: Place) -> None:
    op = place.maker("blocks.1.out")
    after = place.graph.descendants(place.taps["blocks.1.ff.out"])
    position = next(i for i, tensor in enumerate(op.inputs) if tensor not in after)
    replace_inputs(place, op, {position: place.taps["blocks.0.out"]})


def _relu_fused(place: Place) -> None:
    options = place.raw(place.maker("blocks.1.attn.out", FC)).builtinOptions
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU


def _exact_gelu(place: Place) -> None:
    for op in place.graph.ops:
        if op.name == "GELU":
            place.raw(op).builtinOptions.approximate = False


def _written_to_row_0(place: Place) -> None:
    for op in place.graph.ops:
        if op.name == "PACK" and len(op.inputs) == 4:
            replace_inputs(place, op, {1: op.inputs[0]})


def _outputs_exchanged(one: str, other: str) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        entries = place.file.model.signatureDefs[place.signature.position].outputs
        first, second = (
            next(entry for entry in entries if entry.name == name.encode()) for name in (one, other)
        )
        first.tensorIndex, second.tensorIndex = second.tensorIndex, first.tensorIndex

    return change


def _inputs_exchanged(place: Place) -> None:
    """Block 0 reads block 1's cache and the reverse; each writes its own."""
    entries = place.file.model.signatureDefs[place.signature.position].inputs
    first, second = (
        next(entry for entry in entries if entry.name == name)
        for name in (b"kv_cache_k_0", b"kv_cache_k_1")
    )
    first.tensorIndex, second.tensorIndex = second.tensorIndex, first.tensorIndex


def _signature_renamed(place: Place) -> None:
    place.file.model.signatureDefs[place.signature.position].signatureKey = b"decode_1"


def _cut_short(source: Path, target: Path) -> None:
    data = source.read_bytes()
    target.write_bytes(data[: len(data) // 2])


def _residual_commuted(place: Place) -> None:
    exchange_inputs(place, place.maker("blocks.1.out"))


def _gate_times_up_commuted(place: Place) -> None:
    exchange_inputs(place, place.between("blocks.1.ff_norm", "blocks.1.ff.out", "MUL")[-1])


def _buffer_of_its_own(place: Place) -> None:
    """The constant of block 1's norm is stored once more."""
    tensor = place.graph.raw.tensors[place.constant_of(place.maker("blocks.1.attn_norm", *NORMS))]
    buffers = place.file.model.buffers
    buffers.append(copy.copy(buffers[tensor.buffer]))
    tensor.buffer = len(buffers) - 1


def _fault(name: str, description: str, cause: str, where: str, file: Any, **more: Any) -> Fault:
    ports = more.pop("ports", ALL)
    return Fault(
        name=name,
        area="converter",
        description=description,
        cause=cause,
        ports=ports,
        where=tuple(where.split()),
        file=file,
        **more,
    )


FAULTS = (
    _fault(
        "file_weight_one_percent_off",
        "One weight of block 2's output projection is 1 % too large.",
        "one weight off by 1 %",
        "blocks.2.attn.out",
        changed_constant(_weight("blocks.2.attn.out"), _scaled(7, 1.01)),
    ),
    _fault(
        "file_weight_rows_rolled",
        "The rows of block 0's down projection belong to the next channel.",
        "weight rows permuted",
        "blocks.0.ff.out",
        changed_constant(_weight("blocks.0.ff.out"), lambda w: np.roll(w, 1, 0)),
    ),
    _fault(
        "file_constant_written_transposed",
        "Block 1's output projection is written in the order of its transpose.",
        "non-contiguous constant",
        "blocks.1.attn.out",
        changed_constant(_weight("blocks.1.attn.out"), _written_transposed),
        source="litert-torch #1238",
    ),
    _fault(
        "file_constant_in_float16",
        "Block 2's down projection went through float16.",
        "down projection rounded to float16",
        "blocks.2.ff.out",
        changed_constant(
            _weight("blocks.2.ff.out"), lambda w: w.astype(np.float16).astype(np.float32)
        ),
    ),
    _fault(
        "file_constant_zeroed",
        "Block 1's down projection is zero.",
        "constant zeroed",
        "blocks.1.ff.out",
        changed_constant(_weight("blocks.1.ff.out"), np.zeros_like),
    ),
    _fault(
        "file_qkv_scaled",
        "Block 2's fused projection is 0.1 % too large.",
        "constant scaled",
        "blocks.2.attn.q",
        changed_constant(_weight("blocks.2.attn.v"), lambda w: w * np.float32(1.001)),
    ),
    _fault(
        "file_embedding_rows_rolled",
        "The rows of the embedding table belong to the next token.",
        "embedding rows permuted",
        "embed",
        changed_constant(_table, lambda w: np.roll(w, 1, 0)),
        ports=("tinyllama", "phi2"),
    ),
    _fault(
        "file_embedding_scale_cast_to_int",
        "Gemma's factor sqrt(hidden_size) is cast to an integer.",
        "embedding scale truncated",
        "embed",
        changed_constant(lambda place: _scalar(place, place.taps["embed"]), np.trunc),
        ports=GEMMA,
        source="litert-torch 7f3cdc2",
    ),
    _fault(
        "file_rope_frequencies_in_float16",
        "The constant of RoPE's frequencies went through float16.",
        "RoPE frequencies in float16",
        "blocks.*.attn.q",
        changed_constant(_frequencies, lambda w: w.astype(np.float16).astype(np.float32)),
    ),
    _fault(
        "file_mask_sees_one_ahead",
        "In the constant mask each row sees one more column.",
        "causal mask off by one",
        "blocks.*.attn.out",
        changed_constant(_mask, _seen_ahead),
        ports=(*LLAMA, "gemma1", "phi2", "openelm"),
    ),
    _fault(
        "file_final_softcap_scaled",
        "The constant behind Gemma 2's last tanh is 1 % too large.",
        "final softcap constant",
        "logits",
        changed_constant(
            lambda place: _scalar(place, place.signature.outputs["logits"]),
            lambda w: w * np.float32(1.01),
        ),
        ports=("gemma2",),
    ),
    _fault(
        "file_bias_zeroed",
        "The bias of block 1's output projection is zero.",
        "output projection bias left out",
        "blocks.1.attn.out",
        changed_constant(_bias("blocks.1.attn.out"), np.zeros_like),
        ports=("phi2",),
    ),
    _fault(
        "file_buffer_of_another_layer",
        "Block 1's output projection reads block 0's buffer.",
        "wrong buffer",
        "blocks.1.attn.out",
        rewired(_buffer_of_block_0("attn.out")),
        ports=UNIFORM,
    ),
    _fault(
        "file_norm_of_another_layer",
        "Block 1's first norm reads block 0's weight.",
        "wrong buffer",
        "blocks.1.attn_norm",
        rewired(_norm_of_block_0),
    ),
    _fault(
        "file_buffer_of_another_layer_in_decode",
        "In the decode signature alone, block 1's down projection reads block 0's buffer.",
        "wrong buffer in one signature",
        "blocks.1.ff.out",
        rewired(_buffer_of_block_0("ff.out"), "decode"),
        ports=UNIFORM,
        step="decode.0",
        source="litert-torch aae021e",
    ),
    _fault(
        "file_score_scale_attribute",
        "The scale in block 1's attention composite is 1 % too large.",
        "score scale attribute",
        "blocks.1.attn.out",
        rewired(_attribute("scale", 1.01)),
        source="litert-torch #914",
    ),
    _fault(
        "file_score_cap_attribute",
        "The cap in block 1's attention composite is 5 % too large.",
        "score softcap attribute",
        "blocks.1.attn.out",
        rewired(_attribute("logit_cap", 1.05)),
        ports=("gemma2",),
        source="litert-torch #914",
    ),
    _fault(
        "file_rope_subtracts_the_other_way",
        "The operands of a subtraction in block 1's RoPE of q are exchanged.",
        "operands exchanged",
        "blocks.1.attn.q",
        rewired(_subtracted_the_other_way),
    ),
    _fault(
        "file_rope_halves_exchanged",
        "The halves of block 1's k are joined in the other order.",
        "operands exchanged",
        "blocks.1.attn.k",
        rewired(_halves_joined_the_other_way),
    ),
    _fault(
        "file_gate_and_up_exchanged",
        "Block 1's gate and up read each other's weights.",
        "gate and up exchanged",
        "blocks.1.ff.out",
        rewired(_gate_and_up),
        ports=GATED,
    ),
    _fault(
        "file_values_cut_from_the_keys",
        "Block 1's v is cut out of the fused projection where k begins.",
        "slice offset",
        "blocks.1.attn.v",
        rewired(_values_from_the_keys_rows),
    ),
    _fault(
        "file_residual_from_before_attention",
        "Block 1's last addition reads what entered the block, not the sum with attention.",
        "residual reads another tensor",
        "blocks.1.out",
        rewired(_residual_from_before_attention),
    ),
    _fault(
        "file_relu_fused",
        "A ReLU is fused into block 1's output projection.",
        "activation fused",
        "blocks.1.attn.out",
        rewired(_relu_fused),
    ),
    _fault(
        "file_exact_gelu",
        "The GELU operators compute the exact form instead of the tanh form.",
        "activation erf GELU for tanh GELU",
        "blocks.*.ff.out",
        rewired(_exact_gelu),
        ports=(*GEMMA, "phi2"),
        source="litert-torch: composite's attribute says tanh, its body computes erf",
    ),
    _fault(
        "file_decode_writes_row_0",
        "The decode signature writes every row of the cache to row 0.",
        "cache row",
        "blocks.*.attn.out",
        rewired(_written_to_row_0, "decode"),
        step="decode.0",
    ),
    _fault(
        "file_cache_outputs_k_and_v_exchanged",
        "Decode returns block 0's K as V and the reverse.",
        "signature outputs exchanged",
        "kv.0.k",
        rewired(_outputs_exchanged("kv_cache_k_0", "kv_cache_v_0"), "decode"),
        step="decode.0",
    ),
    _fault(
        "file_cache_outputs_of_two_layers_exchanged",
        "A prefill returns block 0's K for block 1 and the reverse.",
        "signature outputs exchanged",
        "kv.0.k kv.1.k",
        rewired(_outputs_exchanged("kv_cache_k_0", "kv_cache_k_1"), "prefill_16"),
        ports=UNIFORM,
        step="prefill.0",
    ),
    _fault(
        "file_cache_inputs_of_two_layers_exchanged",
        "Decode takes block 1's K for block 0 and the reverse.",
        "signature inputs exchanged",
        "blocks.0.attn.out blocks.1.attn.out",
        rewired(_inputs_exchanged, "decode"),
        ports=UNIFORM,
        step="decode.0",
    ),
    _fault(
        "file_signature_missing",
        "The decode signature has another name.",
        "signature name",
        REFUSED,
        rewired(_signature_renamed, "decode"),
        told="has no signature 'decode'",
    ),
    _fault(
        "file_cut_short",
        "The second half of the file is missing.",
        "file cut short",
        REFUSED,
        _cut_short,
        told="cannot be read as a .tflite",
    ),
    _fault(
        "file_weight_one_ulp_off",
        "One weight of block 2's output projection is off by one unit in the last place.",
        "one weight off by one ulp",
        "blocks.2.attn.out",
        changed_constant(_weight("blocks.2.attn.out"), _scaled(7, 1 + 2.0**-23)),
        unseen="a relative 1.2e-7 of one product in a sum of 100 and more is below what rounding "
        "does to every row; only the exact comparison of the weights can see it",
    ),
    _fault(
        "file_residual_commuted",
        "The operands of block 1's last addition are exchanged.",
        "",
        "",
        rewired(_residual_commuted),
        harmless="addition commutes, in float32, too",
    ),
    _fault(
        "file_gate_times_up_commuted",
        "The operands of block 1's last multiplication are exchanged.",
        "",
        "",
        rewired(_gate_times_up_commuted),
        ports=(*GATED, "openelm"),
        harmless="multiplication commutes, in float32, too",
    ),
    _fault(
        "file_constant_stored_twice",
        "The weight of block 1's norm has a buffer of its own in every signature.",
        "",
        "",
        rewired(_buffer_of_its_own),
        harmless="the same values in another place",
    ),
)
