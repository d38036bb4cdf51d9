"""Faults of the feed-forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgeverify.suites.selftest.faults.changes import (
    Function,
    State,
    in_bfloat16,
    with_blocks,
    with_state,
)
from edgeverify.suites.selftest.faults.fault import Fault
from edgeverify.suites.selftest.faults.ports import ALL, GATED, GEMMA, LLAMA, UNIFORM
from edgeverify_models.port import Port

OUT = ("blocks.*.ff.out",)
TANH_GELU = (*GEMMA, "phi2")


def _activated_by(activation: Function, blocks: tuple[int, ...] | None = None) -> Any:
    def change(block: Any) -> None:
        if isinstance(block.ff.act, nn.Module):
            block.ff.act.forward = activation
        else:
            block.ff.act = activation

    return lambda port: with_blocks(port, change, blocks)


def _gate_and_up(blocks: tuple[int, ...] | None) -> Callable[[Port], Port]:
    """The activation is applied to up, and gate is multiplied with it."""

    def change(block: Any) -> None:
        ff = block.ff

        def forward(x: torch.Tensor) -> torch.Tensor:
            x = ff.pre_ff_norm(x)
            return ff.post_ff_norm(ff.w2(ff.act(ff.w3(x)) * ff.w1(x)))

        ff.forward = forward

    return lambda port: with_blocks(port, change, blocks)


def _second_half_gates(x: torch.Tensor) -> torch.Tensor:
    up, gate = x.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _half_and_half_interleaved(x: torch.Tensor) -> torch.Tensor:
    return functional.silu(x[..., 0::2]) * x[..., 1::2]


def _added(ff: Any, x: torch.Tensor) -> torch.Tensor:
    return ff.act(ff.w1(x)) + ff.w3(x)


def _inner(compute: Callable[[Any, torch.Tensor], torch.Tensor]) -> Callable[[Port], Port]:
    """What enters the last projection of block 1 is ``compute(ff, normed x)``."""

    def change(block: Any) -> None:
        ff = block.ff

        def forward(x: torch.Tensor) -> torch.Tensor:
            return ff.post_ff_norm(ff.w2(compute(ff, ff.pre_ff_norm(x))))

        ff.forward = forward

    return lambda port: with_blocks(port, change, (1,))


def _no_residual(port: Port) -> Port:
    """What the feed-forward of block 1 is added to is taken from its output first."""

    def change(block: Any) -> None:
        ff = block.ff.forward
        norm = block.post_atten_norm
        normed = norm.forward
        stream: list[torch.Tensor] = []

        def remember(x: torch.Tensor) -> torch.Tensor:
            stream[:] = [x]
            return normed(x)

        norm.forward = remember
        block.ff.forward = lambda x: ff(x) - stream[0]

    return with_blocks(port, change, (1,))


def _zeroed(name: str, block: int) -> Callable[[Port], Port]:
    def change(state: State) -> None:
        full = f"transformer_blocks.{block}.ff.{name}"
        state[full] = torch.zeros_like(state[full])

    return lambda port: with_state(port, change)


def _up_in_bfloat16(port: Port) -> Port:
    name = "w1" if port.name in ("phi2", "openelm") else "w3"

    def change(state: State) -> None:
        full = f"transformer_blocks.2.ff.{name}.weight"
        state[full] = in_bfloat16(state[full])

    return with_state(port, change)


def _last_channels_lost(port: Port) -> Port:
    """The width was rounded down: the last eighth of the inner channels reaches nothing."""

    def change(state: State) -> None:
        for name in [n for n in state if n.endswith("ff.w2.weight")]:
            changed = state[name].clone()
            changed[:, changed.shape[1] - changed.shape[1] // 8 :] = 0
            state[name] = changed

    return with_state(port, change)


FAULTS = (
    Fault(
        name="gate_and_up_swapped",
        area="feed-forward",
        description="The activation is on up instead of gate, in every block.",
        cause="gate and up exchanged",
        ports=GATED,
        where=OUT,
        port=_gate_and_up(None),
        source="llama.cpp #7359",
    ),
    Fault(
        name="gate_and_up_swapped_in_block_1",
        area="feed-forward",
        description="The activation is on up instead of gate, in block 1 alone.",
        cause="gate and up exchanged",
        ports=GATED,
        where=("blocks.1.ff.out",),
        port=_gate_and_up((1,)),
        source="llama.cpp #7359",
    ),
    Fault(
        name="swiglu_halves_swapped",
        area="feed-forward",
        description="The second half of the fused projection gates the first.",
        cause="gate and up exchanged",
        ports=("openelm",),
        where=OUT,
        port=_activated_by(_second_half_gates),
        source="llama.cpp #7359",
    ),
    Fault(
        name="swiglu_interleaved",
        area="feed-forward",
        description="Gate and up are read as neighbours instead of halves.",
        cause="gate and up interleaved for halves",
        ports=("openelm",),
        where=OUT,
        port=_activated_by(_half_and_half_interleaved),
        source="llama.cpp #7359",
    ),
    Fault(
        name="gelu_for_silu",
        area="feed-forward",
        description="The gate is activated by GELU instead of SiLU.",
        cause="activation GELU for SiLU",
        ports=LLAMA,
        where=OUT,
        port=_activated_by(functional.gelu),
    ),
    Fault(
        name="silu_for_gelu",
        area="feed-forward",
        description="The activation is SiLU instead of GELU.",
        cause="activation SiLU for GELU",
        ports=TANH_GELU,
        where=OUT,
        port=_activated_by(functional.silu),
    ),
    Fault(
        name="exact_gelu_for_tanh_gelu",
        area="feed-forward",
        description="GELU by the error function instead of its tanh form.",
        cause="activation erf GELU for tanh GELU",
        ports=TANH_GELU,
        where=OUT,
        port=_activated_by(functional.gelu),
    ),
    Fault(
        name="quick_gelu_for_tanh_gelu",
        area="feed-forward",
        description="x · sigmoid(1.702 x) instead of the tanh form of GELU.",
        cause="activation quick GELU for tanh GELU",
        ports=TANH_GELU,
        where=OUT,
        port=_activated_by(lambda x: x * torch.sigmoid(1.702 * x)),
    ),
    Fault(
        name="activation_left_out",
        area="feed-forward",
        description="The gate of block 1 is not activated.",
        cause="activation left out",
        ports=UNIFORM,
        where=("blocks.1.ff.out",),
        port=_activated_by(lambda x: x, (1,)),
    ),
    Fault(
        name="activation_in_bfloat16",
        area="feed-forward",
        description="The activation is computed in bfloat16.",
        cause="activation in bfloat16",
        ports=LLAMA,
        where=OUT,
        port=_activated_by(lambda x: functional.silu(x.bfloat16()).float()),
    ),
    Fault(
        name="gate_added_to_up",
        area="feed-forward",
        description="Block 1's gate is added to up instead of multiplied with it.",
        cause="gate added instead of multiplied",
        ports=GATED,
        where=("blocks.1.ff.out",),
        port=_inner(_added),
    ),
    Fault(
        name="feed_forward_first_bias_dropped",
        area="feed-forward",
        description="The bias of block 2's first projection is zero.",
        cause="feed-forward bias left out",
        ports=("phi2",),
        where=("blocks.2.ff.out",),
        port=_zeroed("w1.bias", 2),
    ),
    Fault(
        name="feed_forward_second_bias_dropped",
        area="feed-forward",
        description="The bias of block 0's second projection is zero.",
        cause="feed-forward bias left out",
        ports=("phi2",),
        where=("blocks.0.ff.out",),
        port=_zeroed("w2.bias", 0),
    ),
    Fault(
        name="up_projection_in_bfloat16",
        area="feed-forward",
        description="Block 2's up projection is rounded to bfloat16.",
        cause="up projection rounded to bfloat16",
        ports=ALL,
        where=("blocks.2.ff.out",),
        port=_up_in_bfloat16,
    ),
    Fault(
        name="feed_forward_width_rounded_down",
        area="feed-forward",
        description="The last eighth of the inner channels is cut off.",
        cause="feed-forward width too small",
        ports=ALL,
        where=OUT,
        port=_last_channels_lost,
    ),
    Fault(
        name="feed_forward_residual_left_out",
        area="feed-forward",
        description="Block 1's feed-forward replaces the residual stream.",
        cause="residual around the feed-forward left out",
        ports=(*LLAMA, "gemma1", "openelm"),
        where=("blocks.1.out",),
        port=_no_residual,
    ),
)
