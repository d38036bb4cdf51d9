"""Faults of loading a checkpoint: names, order, what is left over, precision."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from edgeverify.suites.selftest.faults.fault import Faults
from edgeverify.suites.selftest.faults.port_changes import (
    State,
    tensor,
    with_config,
    with_names,
    with_state,
)
from edgeverify.suites.selftest.faults.ports import GATED, ONE_RESIDUAL_NORM, UNIFORM
from edgeverify_models.port import Port

FAULTS = Faults("loader")
OUTPUT_PROJECTION = tensor("transformer_blocks.1.atten_func.output_projection.weight")
DOWN_PROJECTION = tensor("transformer_blocks.1.ff.w2.weight")


def _with_name(port: Port, field: str, new: str | None) -> Port:
    """One name of every scheme is another."""
    schemes = [replace(names, **{field: new}) for names in port.naming_schemes]
    return replace(port, tensor_names=schemes)


def _with_names_exchanged(port: Port, one: str, other: str) -> Port:
    names = port.naming_schemes[0]
    return with_names(port, **{one: getattr(names, other), other: getattr(names, one)})


def _pairs(state: State, prefix: str = "") -> list[tuple[str, str]]:
    """The names of each tensor of block 0 and of the same tensor of block 1."""
    first = f"transformer_blocks.0.{prefix}"
    return [(n, n.replace("blocks.0.", "blocks.1.", 1)) for n in state if n.startswith(first)]


_output_projection_fault = partial(FAULTS.add, via=OUTPUT_PROJECTION, where="blocks.1.attn.out")
_down_projection_fault = partial(FAULTS.add, via=DOWN_PROJECTION, where="blocks.1.ff.out")
_layers_fault = partial(FAULTS.add, via=with_state, ports=UNIFORM, kinds="norm.weight weight")


@FAULTS.add("tensor name wrong", refusal="mlp_out", source="litert-torch 8533016 → 19a168c")
def tensor_name_misspelt(port: Port) -> Port:
    """The name of one tensor is wrong, so that it is not found."""
    return _with_name(port, "ff_down_proj", "model.layers.{}.mlp_out")


@FAULTS.add("tensor name left out", refusal="nothing takes", source="litert-torch 28f44fa")
def norm_name_forgotten(port: Port) -> Port:
    """The final norm's name is left out, so that its weight is left over."""
    return _with_name(port, "final_norm", None)


@FAULTS.add(
    "qkv bias left out",
    ports=GATED,  # their attention_bias may be set
    refusal="bias",
    kinds="bias",
    hf={"attention_bias": True},
    source="litert-torch 19a168c",
)
def qkv_bias_left_over(port: Port) -> Port:
    """The checkpoint has biases of q, k and v; the port is built without."""
    return with_config(port, attention_bias=False)


@FAULTS.add("number of layers - 1", ports=UNIFORM, refusal="nothing takes")
def last_layer_left_over(port: Port) -> Port:
    """The port has one layer less than the checkpoint."""
    layers = port.hf_configs["tiny"]["num_hidden_layers"]
    return with_config(port, num_hidden_layers=layers - 1)


@FAULTS.add(
    "gate and up exchanged",
    ports=GATED,
    where="blocks.*.ff.out",
    kinds="ff.gate weight",
    source="llama.cpp #7359",
)
def gate_and_up_names_exchanged(port: Port) -> Port:
    """The names of gate and up are exchanged."""
    return _with_names_exchanged(port, "ff_gate_proj", "ff_up_proj")


@FAULTS.add("k and v exchanged", ports=UNIFORM, where="blocks.*.attn.k", kinds="weight")
def k_and_v_names_exchanged(port: Port) -> Port:
    """The names of k and v are exchanged."""
    return _with_names_exchanged(port, "attn_key_proj", "attn_value_proj")


@FAULTS.add(
    "norm names exchanged",
    ports=ONE_RESIDUAL_NORM,
    where="blocks.*.attn_norm",
    kinds="norm.weight",
)
def norm_names_exchanged(port: Port) -> Port:
    """The names of the norms before attention and feed-forward are exchanged."""
    return _with_names_exchanged(port, "pre_attn_norm", "post_attn_norm")


@_layers_fault("layers in the wrong order", where="blocks.0.attn_norm blocks.1.attn_norm")
def layers_exchanged(state: State) -> None:
    """Layers 0 and 1 are loaded in the other order."""
    for one, other in _pairs(state):
        state[one], state[other] = state[other], state[one]


@_layers_fault("layer loaded twice", where="blocks.1.attn_norm", source="litert-torch 5492f26")
def shard_read_twice(state: State) -> None:
    """Layer 1 has the tensors of layer 0."""
    for one, other in _pairs(state):
        state[other] = state[one]


@_layers_fault("layers in the wrong order", where="blocks.0.ff.out blocks.1.ff.out")
def feed_forwards_exchanged(state: State) -> None:
    """The feed-forwards of layers 0 and 1 are exchanged."""
    for one, other in _pairs(state, "ff.w"):
        state[one], state[other] = state[other], state[one]


@FAULTS.add(
    "weights rounded to float16",
    via=tensor(""),
    where="embed blocks.*.attn_norm final_norm",
    kinds="embedding.table head.weight norm.weight weight",
)
def checkpoint_in_float16(weight: torch.Tensor) -> torch.Tensor:
    """All tensors went through float16; every part differs."""
    return weight.half().float()


@_output_projection_fault("output projection rounded to float16", kinds="weight")
def matrix_in_float16(weight: torch.Tensor) -> torch.Tensor:
    """Block 1's output projection went through float16."""
    return weight.half().float()


@_down_projection_fault("down projection zero", kinds="weight", source="litert-torch 5492f26")
def matrix_left_empty(weight: torch.Tensor) -> torch.Tensor:
    """Block 1's down projection is zero: its shard was not read."""
    return torch.zeros_like(weight)


@_down_projection_fault("weight NaN")
def weight_is_nan(weight: torch.Tensor) -> torch.Tensor:
    """One weight of block 1's down projection is NaN."""
    weight[0, 0] = float("nan")
    return weight


@_output_projection_fault("output projection byte order")
def byte_order_of_a_matrix(weight: torch.Tensor) -> torch.Tensor:
    """Block 1's output projection is read in the other byte order."""
    raw = weight.contiguous().view(torch.uint8).reshape(-1, 4).flip(1).contiguous()
    swapped = raw.view(torch.float32).reshape(weight.shape)
    return torch.nan_to_num(swapped, 0.0, 1.0, -1.0)


@_output_projection_fault("one weight off by 10 %", kinds="weight")
def weight_ten_percent_off(weight: torch.Tensor) -> torch.Tensor:
    """One weight of block 1's output projection is 10 % off."""
    weight[3, 5] *= 1.1
    return weight


@_output_projection_fault(
    "one weight off by one ulp",
    unseen="a relative 1.2e-7 of one product in a sum of 100 and more is below what rounding "
    "does to every row; only the exact comparison of the weights can see it",
)
def weight_one_ulp_off(weight: torch.Tensor) -> torch.Tensor:
    """One weight of block 1's output projection is off by one unit in the last place."""
    weight[3, 5] *= 1 + 2.0**-23
    return weight
