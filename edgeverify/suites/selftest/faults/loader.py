"""Faults of loading a checkpoint: names, order, what is left over, precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from edgeverify.suites.selftest.faults.changes import State, with_config, with_names, with_state
from edgeverify.suites.selftest.faults.fault import REFUSED, Fault
from edgeverify.suites.selftest.faults.ports import ALL, GATED, LLAMA, UNIFORM
from edgeverify_models.port import Port, TensorNames

BIASED = (*LLAMA, "gemma1", "gemma2")  # attention_bias may be set


def _renamed(field: str, new: str | None) -> Callable[[Port], Port]:
    """One name of every scheme is another."""

    def change(port: Port) -> Port:
        schemes = [replace(names, **{field: new}) for names in port.naming_schemes]
        return replace(port, tensor_names=schemes)

    return change


def _exchanged(one: str, other: str) -> Callable[[Port], Port]:
    def change(port: Port) -> Port:
        names: TensorNames = port.naming_schemes[0]
        return with_names(port, **{one: getattr(names, other), other: getattr(names, one)})

    return change


def _block_names(state: State, index: int) -> list[str]:
    prefix = f"transformer_blocks.{index}."
    return [name.removeprefix(prefix) for name in state if name.startswith(prefix)]


def _layers_exchanged(state: State) -> None:
    for name in _block_names(state, 0):
        one, other = f"transformer_blocks.0.{name}", f"transformer_blocks.1.{name}"
        state[one], state[other] = state[other], state[one]


def _layer_read_twice(state: State) -> None:
    for name in _block_names(state, 0):
        state[f"transformer_blocks.1.{name}"] = state[f"transformer_blocks.0.{name}"]


def _feed_forwards_exchanged(state: State) -> None:
    for name in [n for n in _block_names(state, 0) if n.startswith("ff.w")]:
        one, other = f"transformer_blocks.0.{name}", f"transformer_blocks.1.{name}"
        state[one], state[other] = state[other], state[one]


def _in_float16(state: State) -> None:
    for name, tensor in state.items():
        state[name] = tensor.half().float()


def _float16_matrix(state: State) -> None:
    name = "transformer_blocks.1.atten_func.output_projection.weight"
    state[name] = state[name].half().float()


def _empty_matrix(state: State) -> None:
    name = "transformer_blocks.1.ff.w2.weight"
    state[name] = torch.zeros_like(state[name])


def _not_a_number(state: State) -> None:
    name = "transformer_blocks.1.ff.w2.weight"
    state[name] = state[name].clone()
    state[name][0, 0] = float("nan")


def _element(factor: float) -> Callable[[Port], Port]:
    """One weight of block 1's attention is scaled."""

    def change(state: State) -> None:
        name = "transformer_blocks.1.atten_func.output_projection.weight"
        state[name] = state[name].clone()
        state[name][3, 5] *= factor

    return lambda port: with_state(port, change)


def _byte_order(state: State) -> None:
    """Block 1's output projection is read with the bytes of each number reversed."""
    name = "transformer_blocks.1.atten_func.output_projection.weight"
    raw = state[name].contiguous().view(torch.uint8).reshape(-1, 4).flip(1).contiguous()
    swapped = raw.view(torch.float32).reshape(state[name].shape)
    state[name] = torch.nan_to_num(swapped, 0.0, 1.0, -1.0)


FAULTS = (
    Fault(
        name="tensor_name_misspelt",
        area="loader",
        description="The name of one tensor is wrong, so that it is not found.",
        cause="tensor name wrong",
        ports=ALL,
        where=(REFUSED,),
        told="mlp_out",
        port=_renamed("ff_down_proj", "model.layers.{}.mlp_out"),
        source="litert-torch 8533016 → 19a168c",
    ),
    Fault(
        name="norm_name_forgotten",
        area="loader",
        description="The final norm's name is left out, so that its weight is left over.",
        cause="tensor name left out",
        ports=ALL,
        where=(REFUSED,),
        told="nothing takes",
        port=_renamed("final_norm", None),
        source="litert-torch 28f44fa",
    ),
    Fault(
        name="qkv_bias_left_over",
        area="loader",
        description="The checkpoint has biases of q, k and v; the port is built without.",
        cause="qkv bias left out",
        ports=BIASED,
        where=(REFUSED,),
        told="bias",
        port=lambda port: with_config(port, attention_bias=False),
        hf={"attention_bias": True},
        source="litert-torch 19a168c",
    ),
    Fault(
        name="last_layer_left_over",
        area="loader",
        description="The port has one layer less than the checkpoint.",
        cause="number of layers - 1",
        ports=UNIFORM,
        where=(REFUSED,),
        told="nothing takes",
        port=lambda port: with_config(
            port,
            num_hidden_layers=port.hf_configs["tiny"]["num_hidden_layers"] - 1,
        ),
    ),
    Fault(
        name="gate_and_up_names_exchanged",
        area="loader",
        description="The names of gate and up are exchanged.",
        cause="gate and up exchanged",
        ports=GATED,
        where=("blocks.*.ff.out",),
        port=_exchanged("ff_gate_proj", "ff_up_proj"),
        source="llama.cpp #7359",
    ),
    Fault(
        name="k_and_v_names_exchanged",
        area="loader",
        description="The names of k and v are exchanged.",
        cause="k and v exchanged",
        ports=UNIFORM,
        where=("blocks.*.attn.k",),
        port=_exchanged("attn_key_proj", "attn_value_proj"),
    ),
    Fault(
        name="norm_names_exchanged",
        area="loader",
        description="The names of the norms before attention and feed-forward are exchanged.",
        cause="norm names exchanged",
        ports=(*LLAMA, "gemma1", "openelm"),
        where=("blocks.*.attn_norm",),
        port=_exchanged("pre_attn_norm", "post_attn_norm"),
    ),
    Fault(
        name="layers_exchanged",
        area="loader",
        description="Layers 0 and 1 are loaded in the other order.",
        cause="layers in the wrong order",
        ports=UNIFORM,
        where=("blocks.0.attn_norm", "blocks.1.attn_norm"),
        port=lambda port: with_state(port, _layers_exchanged),
    ),
    Fault(
        name="shard_read_twice",
        area="loader",
        description="Layer 1 has the tensors of layer 0.",
        cause="layer loaded twice",
        ports=UNIFORM,
        where=("blocks.1.attn_norm",),
        port=lambda port: with_state(port, _layer_read_twice),
        source="litert-torch 5492f26",
    ),
    Fault(
        name="feed_forwards_exchanged",
        area="loader",
        description="The feed-forwards of layers 0 and 1 are exchanged.",
        cause="layers in the wrong order",
        ports=UNIFORM,
        where=("blocks.0.ff.out", "blocks.1.ff.out"),
        port=lambda port: with_state(port, _feed_forwards_exchanged),
    ),
    Fault(
        name="checkpoint_in_float16",
        area="loader",
        description="All tensors went through float16; every part differs.",
        cause="weights rounded to float16",
        ports=ALL,
        where=("embed", "blocks.*.attn_norm", "final_norm"),
        port=lambda port: with_state(port, _in_float16),
    ),
    Fault(
        name="matrix_in_float16",
        area="loader",
        description="Block 1's output projection went through float16.",
        cause="output projection rounded to float16",
        ports=ALL,
        where=("blocks.1.attn.out",),
        port=lambda port: with_state(port, _float16_matrix),
    ),
    Fault(
        name="matrix_left_empty",
        area="loader",
        description="Block 1's down projection is zero: its shard was not read.",
        cause="down projection zero",
        ports=ALL,
        where=("blocks.1.ff.out",),
        port=lambda port: with_state(port, _empty_matrix),
        source="litert-torch 5492f26",
    ),
    Fault(
        name="weight_is_nan",
        area="loader",
        description="One weight of block 1's down projection is NaN.",
        cause="weight NaN",
        ports=ALL,
        where=("blocks.1.ff.out",),
        port=lambda port: with_state(port, _not_a_number),
    ),
    Fault(
        name="byte_order_of_a_matrix",
        area="loader",
        description="Block 1's output projection is read in the other byte order.",
        cause="output projection byte order",
        ports=ALL,
        where=("blocks.1.attn.out",),
        port=lambda port: with_state(port, _byte_order),
    ),
    Fault(
        name="weight_ten_percent_off",
        area="loader",
        description="One weight of block 1's output projection is 10 % off.",
        cause="one weight off by 10 %",
        ports=ALL,
        where=("blocks.1.attn.out",),
        port=_element(1.1),
    ),
    Fault(
        name="weight_one_ulp_off",
        area="loader",
        description="One weight of block 1's output projection is off by one unit in the last "
        "place.",
        cause="one weight off by one ulp",
        ports=ALL,
        where=("blocks.1.attn.out",),
        port=_element(1 + 2.0**-23),
        unseen="a relative 1.2e-7 of one product in a sum of 100 and more is below what rounding "
        "does to every row; only the exact comparison of the weights can see it",
    ),
)
