"""Faults of the rotary position embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from litert_torch.generative.layers import rotary_position_embedding as rotary

from edgeverify.suites.selftest.faults.changes import (
    Function,
    State,
    in_bfloat16,
    with_block_configs,
    with_config,
    with_function,
    with_rope,
    with_scaled,
    with_state,
)
from edgeverify.suites.selftest.faults.fault import Fault
from edgeverify.suites.selftest.faults.ports import ALL
from edgeverify_models.port import Port

BASE = ("rope_theta", "rope_freq_constant")
Q, K = ("blocks.*.attn.q",), ("blocks.*.attn.k",)


def _share(value: float) -> Callable[[Port], Port]:
    def change(block: Any) -> None:
        block.attn_config.rotary_percentage = value

    return lambda port: with_block_configs(port, change)


def _interleaved(q: torch.Tensor, k: torch.Tensor, cos: Any, sin: Any) -> Any:
    """Rotates elements (0, 1), (2, 3), ... instead of (0, n/2), (1, n/2 + 1), ..."""

    def rotate(x: torch.Tensor) -> torch.Tensor:
        size = 2 * cos.shape[-1]
        even, odd = x[..., 0:size:2], x[..., 1:size:2]
        c, s = cos[:, :, None], sin[:, :, None]
        turned = torch.stack((even * c - odd * s, odd * c + even * s), dim=-1).flatten(-2)
        return torch.cat((turned, x[..., size:]), dim=-1)

    return rotate(q), rotate(k)


def _rotating(change: Callable[[Function, Any, Any, Any, Any], Any]) -> Callable[[Port], Port]:
    """``change(rotate, q, k, cos, sin)`` stands for ``rotate(q, k, cos, sin)``."""

    def make(rotate: Function) -> Function:
        return lambda q, k, cos, sin: change(rotate, q, k, cos, sin)

    return lambda port: with_function(port, rotary, "apply_rope_inline", make)


def _later_query(rotate: Function, q: Any, k: Any, cos: Any, sin: Any) -> Any:
    """q stands one position further than it does: its angles are those of the next row."""
    cos_1, sin_1 = cos[:, -1:], sin[:, -1:]
    moved = torch.cat((cos[:, 1:], cos_1), 1), torch.cat((sin[:, 1:], sin_1), 1)
    return rotate(q, k, *moved)[0], rotate(q, k, cos, sin)[1]


def _building(change: Callable[[Function, Any, int, float], Any]) -> Callable[[Port], Port]:
    """``change(build, input_pos, elements, base)`` gives cos and sin."""

    def make(build: Function) -> Function:
        return lambda pos, elements, base: change(build, pos, elements, base)

    return lambda port: with_rope(port, make)


def _in_bfloat16(build: Function, pos: Any, elements: int, base: float) -> Any:
    cos, sin = build(pos, elements, base)
    return in_bfloat16(cos), in_bfloat16(sin)


def _frequencies_in_bfloat16(build: Function, pos: Any, elements: int, base: float) -> Any:
    exponents = torch.arange(0, elements, 2) / elements
    angles = pos[None, :, None] * in_bfloat16(1 / base**exponents)
    return angles.cos(), angles.sin()


def _exponents_of_half(build: Function, pos: Any, elements: int, base: float) -> Any:
    """The exponents run over the pairs: 0, 1/n, 2/n, ... instead of 0, 2/n, 4/n, ..."""
    angles = pos[None, :, None] / base ** (torch.arange(elements // 2) / elements)
    return angles.cos(), angles.sin()


def _backwards(build: Function, pos: Any, elements: int, base: float) -> Any:
    cos, sin = build(pos, elements, base)
    return cos, -sin


def _cos_and_sin_exchanged(build: Function, pos: Any, elements: int, base: float) -> Any:
    cos, sin = build(pos, elements, base)
    return sin, cos


def _keys_permuted_for_the_query_heads(port: Port) -> Port:
    """Meta's interleaved-to-halves permutation, done once too often, with the wrong count.

    K's rows are permuted as if there were as many key heads as query heads.
    """

    def change(state: State) -> None:
        for name in [n for n in state if n.endswith("qkv_projection.weight")]:
            index = int(name.split(".")[1])
            attention = port.model_config(port.hf_configs["tiny"]).block_config(index).attn_config
            heads, groups, dim = (
                attention.num_heads,
                attention.num_query_groups,
                attention.head_dim,
            )
            q, k, v = state[name].split((heads * dim, groups * dim, groups * dim))
            per_head = k.shape[0] // heads
            pairs = k.reshape(heads, per_head // 2, 2, k.shape[1])
            state[name] = torch.cat((q, pairs.transpose(1, 2).reshape(k.shape), v))

    return with_state(port, change)


FAULTS = (
    Fault(
        name="rope_base_of_the_library",
        area="rope",
        description="The config's base is overlooked; the library's 10000 is used.",
        cause="rotary base 10000",
        ports=ALL,
        where=Q,
        port=lambda port: with_config(port, rope_theta=10000.0, rope_freq_constant=10000),
        source="litert-torch 605d9e7, litgpt #2217",
    ),
    Fault(
        name="rope_base_one_percent_off",
        area="rope",
        description="The base is 1 % too large.",
        cause="rotary base off by 1 %",
        ports=ALL,
        where=Q,
        port=lambda port: with_scaled(port, 1.01, *BASE),
        source="litert-torch 605d9e7, litgpt #2217",
    ),
    Fault(
        name="rope_share_ignored",
        area="rope",
        description="All elements of a head are rotated instead of the first 0.45.",
        cause="rotary share 1",
        ports=("phi2",),
        where=Q,
        port=_share(1.0),
        source="litert-torch dc45276 → c8d0b19",
    ),
    Fault(
        name="rope_share_of_the_config_class",
        area="rope",
        description="The share is 0.5, the default of transformers' PhiConfig.",
        cause="rotary share 0.5",
        ports=("phi2",),
        where=Q,
        port=lambda port: with_config(port, partial_rotary_factor=0.5),
        source="litert-torch dc45276 → c8d0b19",
    ),
    Fault(
        name="rope_share_where_there_is_none",
        area="rope",
        description="Half of each head is left unrotated.",
        cause="rotary share 0.5",
        ports=tuple(name for name in ALL if name != "phi2"),
        where=Q,
        port=_share(0.5),
    ),
    Fault(
        name="rope_interleaved",
        area="rope",
        description="Neighbouring elements are paired instead of the two halves.",
        cause="RoPE interleaved for half-split",
        ports=ALL,
        where=Q,
        port=_rotating(lambda rotate, *args: _interleaved(*args)),
        source="TinyLlama #24",
    ),
    Fault(
        name="rope_left_out",
        area="rope",
        description="Neither q nor k is rotated.",
        cause="RoPE left out",
        ports=ALL,
        where=Q,
        port=_rotating(lambda rotate, q, k, cos, sin: (q, k)),
    ),
    Fault(
        name="rope_on_queries_alone",
        area="rope",
        description="k is not rotated.",
        cause="RoPE of k left out",
        ports=ALL,
        where=K,
        port=_rotating(lambda rotate, q, k, cos, sin: (rotate(q, k, cos, sin)[0], k)),
    ),
    Fault(
        name="rope_of_the_next_position_for_queries",
        area="rope",
        description="q has the angles of the position after its own, k its own.",
        cause="RoPE positions of q off by one",
        ports=ALL,
        where=Q,
        port=_rotating(_later_query),
    ),
    Fault(
        name="rope_turns_backwards",
        area="rope",
        description="The sign of the sine is wrong.",
        cause="RoPE sign of sine",
        ports=ALL,
        where=Q,
        port=_building(_backwards),
    ),
    Fault(
        name="rope_cos_and_sin_exchanged",
        area="rope",
        description="Cosine and sine are returned in the other order.",
        cause="RoPE cosine and sine exchanged",
        ports=ALL,
        where=Q,
        port=_building(_cos_and_sin_exchanged),
    ),
    Fault(
        name="rope_in_bfloat16",
        area="rope",
        description="Cosine and sine are rounded to bfloat16.",
        cause="RoPE in bfloat16",
        ports=ALL,
        where=Q,
        port=_building(_in_bfloat16),
        source="transformers #29285",
    ),
    Fault(
        name="rope_frequencies_in_bfloat16",
        area="rope",
        description="The frequencies are rounded to bfloat16; errors grow with the position.",
        cause="RoPE frequencies in bfloat16",
        ports=ALL,
        where=Q,
        port=_building(_frequencies_in_bfloat16),
        source="transformers #29285",
    ),
    Fault(
        name="rope_exponents_halved",
        area="rope",
        description="The exponents of the frequencies advance by 1/n instead of 2/n.",
        cause="RoPE exponents halved",
        ports=ALL,
        where=Q,
        port=_building(_exponents_of_half),
    ),
    Fault(
        name="rope_positions_interpolated",
        area="rope",
        description="Positions are halved, as by linear RoPE scaling that the config has not.",
        cause="RoPE scaled linearly by 2",
        ports=ALL,
        where=Q,
        port=_building(lambda build, pos, *rest: build(pos / 2, *rest)),
    ),
    Fault(
        name="rope_positions_restart_with_each_chunk",
        area="rope",
        description="Positions count from 0 in every call instead of going on.",
        cause="RoPE positions restart with each chunk",
        ports=ALL,
        where=Q,
        step="prefill.1",
        port=_building(lambda build, pos, *rest: build(pos - pos[0], *rest)),
    ),
    Fault(
        name="rope_keys_permuted_with_the_wrong_head_count",
        area="rope",
        description="K's rows are permuted as if there were as many key heads as query heads.",
        cause="key rows permuted",
        ports=ALL,
        where=K,
        port=_keys_permuted_for_the_query_heads,
        source="transformers #31788",
    ),
)
