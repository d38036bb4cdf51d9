"""Faults of the feed-forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgeverify.suites.selftest.faults.fault import Faults
from edgeverify.suites.selftest.faults.port_changes import (
    Blocks,
    in_bfloat16,
    tensor,
    with_blocks,
)
from edgeverify.suites.selftest.faults.ports import (
    GATED,
    GEMMA,
    LLAMA,
    ONE_RESIDUAL_NORM,
    UNIFORM,
)
from edgeverify_models.port import Port

FAULTS = Faults("feed-forward", where="blocks.*.ff.out")
TANH_GELU = (*GEMMA, "phi2")
SWAPPED = "llama.cpp #7359"


def _with_activation(
    port: Port, activation: Callable[[torch.Tensor], torch.Tensor], blocks: Blocks = None
) -> Port:
    def change(block: Any) -> None:
        if isinstance(block.ff.act, nn.Module):
            block.ff.act.forward = activation
        else:
            block.ff.act = activation

    return with_blocks(port, change, blocks)


def with_inner(
    port: Port, change: Callable[[Any, torch.Tensor], torch.Tensor], blocks: Blocks = None
) -> Port:
    """What enters the last projection is ``change(ff, normed x)``."""

    def change_block(block: Any) -> None:
        ff = block.ff

        def forward(x: torch.Tensor) -> torch.Tensor:
            return ff.post_ff_norm(ff.w2(change(ff, ff.pre_ff_norm(x))))

        ff.forward = forward

    return with_blocks(port, change_block, blocks)


def _up_activated(ff: Any, x: torch.Tensor) -> torch.Tensor:
    return ff.act(ff.w3(x)) * ff.w1(x)


_exchange_fault = partial(FAULTS.add, kinds="ff.gate weight", source=SWAPPED)
_activation_fault = partial(FAULTS.add, via=_with_activation, kinds="ff.activation")


@_exchange_fault("gate and up exchanged", ports=GATED)
def gate_and_up_swapped(port: Port) -> Port:
    """The activation is on up instead of gate, in every block."""
    return with_inner(port, _up_activated)


@_exchange_fault("gate and up exchanged", ports=GATED, where="blocks.1.ff.out")
def gate_and_up_swapped_in_block_1(port: Port) -> Port:
    """The activation is on up instead of gate, in block 1 alone."""
    return with_inner(port, _up_activated, (1,))


@_exchange_fault("gate and up exchanged", via=_with_activation, ports="openelm")
def swiglu_halves_swapped(x: torch.Tensor) -> torch.Tensor:
    """The second half of the fused projection gates the first."""
    up, gate = x.chunk(2, dim=-1)
    return functional.silu(gate) * up


@FAULTS.add(
    "gate and up interleaved for halves",
    via=_with_activation,
    ports="openelm",
    kinds="ff.gate",
    source=SWAPPED,
)
def swiglu_interleaved(x: torch.Tensor) -> torch.Tensor:
    """Gate and up are read as neighbours instead of halves."""
    return functional.silu(x[..., 0::2]) * x[..., 1::2]


@_activation_fault("activation GELU for SiLU", ports=LLAMA)
def gelu_for_silu(x: torch.Tensor) -> torch.Tensor:
    """The gate is activated by GELU instead of SiLU."""
    return functional.gelu(x)


@_activation_fault("activation SiLU for GELU", ports=TANH_GELU)
def silu_for_gelu(x: torch.Tensor) -> torch.Tensor:
    """The activation is SiLU instead of GELU."""
    return functional.silu(x)


@_activation_fault("activation erf GELU for tanh GELU", ports=TANH_GELU)
def exact_gelu_for_tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU by the error function instead of its tanh form."""
    return functional.gelu(x)


@_activation_fault("activation quick GELU for tanh GELU", ports=TANH_GELU)
def quick_gelu_for_tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    """x · sigmoid(1.702 x) instead of the tanh form of GELU."""
    return x * torch.sigmoid(1.702 * x)


@FAULTS.add(
    "activation left out",
    via=partial(_with_activation, blocks=(1,)),
    ports=UNIFORM,
    where="blocks.1.ff.out",
    kinds="ff.activation",
)
def activation_left_out(x: torch.Tensor) -> torch.Tensor:
    """The gate of block 1 is not activated."""
    return x


@FAULTS.add("activation in bfloat16", via=_with_activation, ports=LLAMA)
def activation_in_bfloat16(x: torch.Tensor) -> torch.Tensor:
    """The activation is computed in bfloat16."""
    return functional.silu(x.bfloat16()).float()


@FAULTS.add(
    "gate added instead of multiplied",
    via=partial(with_inner, blocks=(1,)),
    ports=GATED,
    where="blocks.1.ff.out",
    kinds="ff.gate",
)
def gate_added_to_up(ff: Any, x: torch.Tensor) -> torch.Tensor:
    """Block 1's gate is added to up instead of multiplied with it."""
    return ff.act(ff.w1(x)) + ff.w3(x)


@FAULTS.add(
    "feed-forward bias left out",
    via=tensor("transformer_blocks.2.ff.w1.bias"),
    ports="phi2",
    where="blocks.2.ff.out",
    kinds="weight",
)
def feed_forward_first_bias_dropped(bias: torch.Tensor) -> torch.Tensor:
    """The bias of block 2's first projection is zero."""
    return torch.zeros_like(bias)


@FAULTS.add(
    "feed-forward bias left out",
    via=tensor("transformer_blocks.0.ff.w2.bias"),
    ports="phi2",
    where="blocks.0.ff.out",
    kinds="weight",
)
def feed_forward_second_bias_dropped(bias: torch.Tensor) -> torch.Tensor:
    """The bias of block 0's second projection is zero."""
    return torch.zeros_like(bias)


@FAULTS.add("up projection rounded to bfloat16", where="blocks.2.ff.out", kinds="weight")
def up_projection_in_bfloat16(port: Port) -> Port:
    """Block 2's up projection is rounded to bfloat16."""
    name = "w1" if port.name in ("phi2", "openelm") else "w3"
    return tensor(f"transformer_blocks.2.ff.{name}.weight")(port, in_bfloat16)


@FAULTS.add("feed-forward width too small", via=tensor("ff.w2.weight"), kinds="weight")
def feed_forward_width_rounded_down(weight: torch.Tensor) -> torch.Tensor:
    """The last eighth of the inner channels is cut off.

    The width was rounded down: these channels reach nothing.
    """
    weight[:, weight.shape[1] - weight.shape[1] // 8 :] = 0
    return weight


@FAULTS.add(
    "residual around the feed-forward left out",
    via=partial(with_blocks, blocks=(1,)),
    ports=ONE_RESIDUAL_NORM,
    where="blocks.1.out",
    kinds="residual",
)
def feed_forward_residual_left_out(block: Any) -> None:
    """Block 1's feed-forward replaces the residual stream.

    What its output is added to is taken from it first.
    """
    ff, norm = block.ff.forward, block.post_atten_norm
    normed = norm.forward
    stream: list[torch.Tensor] = []

    def remember(x: torch.Tensor) -> torch.Tensor:
        stream[:] = [x]
        return normed(x)

    norm.forward = remember
    block.ff.forward = lambda x: ff(x) - stream[0]
