"""Faults of the rotary position embedding."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from litert_torch.generative.layers import rotary_position_embedding as rotary

from edgeverify.suites.selftest.faults.fault import Faults
from edgeverify.suites.selftest.faults.port_changes import (
    Function,
    State,
    attention_config,
    in_bfloat16,
    split_qkv,
    with_block_configs,
    with_config,
    with_function,
    with_rope,
    with_scaled,
    with_state,
)
from edgeverify.suites.selftest.faults.ports import ALL
from edgeverify_models.port import Port

Q, K = "blocks.*.attn.q", "blocks.*.attn.k"
FAULTS = Faults("rope", where=Q)
# Its functions are ``change(rotate, q, k, cos, sin)`` instead of ``rotate(q, k, cos, sin)``.
with_rotation = partial(with_function, owner=rotary, name="apply_rope_inline")


@FAULTS.add("rotary base 10000", kinds="rope.base", source="litert-torch 605d9e7, litgpt #2217")
def rope_base_of_the_library(port: Port) -> Port:
    """The config's base is overlooked; the library's 10000 is used."""
    return with_config(port, rope_theta=10000.0, rope_freq_constant=10000)


@FAULTS.add(
    "rotary base off by 1 %", kinds="rope.base", source="litert-torch 605d9e7, litgpt #2217"
)
def rope_base_one_percent_off(port: Port) -> Port:
    """The base is 1 % too large."""
    return with_scaled(port, 1.01, "rope_theta", "rope_freq_constant")


@FAULTS.add(
    "rotary share 1",
    via=with_block_configs,
    ports="phi2",
    kinds="rope.share",
    source="litert-torch dc45276 → c8d0b19",
)
def rope_share_ignored(block: Any) -> None:
    """All elements of a head are rotated instead of the first 0.45."""
    block.attn_config.rotary_percentage = 1.0


@FAULTS.add(
    "rotary share 0.5",
    ports="phi2",
    kinds="rope.share",
    source="litert-torch dc45276 → c8d0b19",
)
def rope_share_of_the_config_class(port: Port) -> Port:
    """The share is 0.5, the default of transformers' PhiConfig."""
    return with_config(port, partial_rotary_factor=0.5)


@FAULTS.add(
    "rotary share 0.5",
    via=with_block_configs,
    ports=tuple(name for name in ALL if name != "phi2"),
    kinds="rope.share",
)
def rope_share_where_there_is_none(block: Any) -> None:
    """Half of each head is left unrotated."""
    block.attn_config.rotary_percentage = 0.5


@FAULTS.add(
    "RoPE interleaved for half-split",
    via=with_rotation,
    kinds="rope.pairs",
    source="TinyLlama #24",
)
def rope_interleaved(rotate: Function, q: Any, k: Any, cos: Any, sin: Any) -> Any:
    """Neighbouring elements are paired instead of the two halves.

    (0, 1), (2, 3), ... instead of (0, n/2), (1, n/2 + 1), ...
    """

    def rotated(x: torch.Tensor) -> torch.Tensor:
        size = 2 * cos.shape[-1]
        even, odd = x[..., 0:size:2], x[..., 1:size:2]
        c, s = cos[:, :, None], sin[:, :, None]
        turned = torch.stack((even * c - odd * s, odd * c + even * s), dim=-1).flatten(-2)
        return torch.cat((turned, x[..., size:]), dim=-1)

    return rotated(q), rotated(k)


@FAULTS.add("RoPE left out", via=with_rotation, kinds="rope.missing")
def rope_left_out(rotate: Function, q: Any, k: Any, cos: Any, sin: Any) -> Any:
    """Neither q nor k is rotated."""
    return q, k


@FAULTS.add("RoPE of k left out", via=with_rotation, where=K, kinds="rope.missing")
def rope_on_queries_alone(rotate: Function, q: Any, k: Any, cos: Any, sin: Any) -> Any:
    """k is not rotated."""
    return rotate(q, k, cos, sin)[0], k


@FAULTS.add("RoPE positions of q off by one", via=with_rotation)
def rope_of_the_next_position_for_queries(
    rotate: Function, q: Any, k: Any, cos: Any, sin: Any
) -> Any:
    """q has the angles of the position after its own, k its own."""
    moved = (torch.cat((angles[:, 1:], angles[:, -1:]), 1) for angles in (cos, sin))
    return rotate(q, k, *moved)[0], rotate(q, k, cos, sin)[1]


@FAULTS.add("RoPE sign of sine", via=with_rope, kinds="rope.turn")
def rope_turns_backwards(build: Function, pos: Any, elements: int, base: float) -> Any:
    """The sign of the sine is wrong."""
    cos, sin = build(pos, elements, base)
    return cos, -sin


@FAULTS.add("RoPE cosine and sine exchanged", via=with_rope)
def rope_cos_and_sin_exchanged(build: Function, pos: Any, elements: int, base: float) -> Any:
    """Cosine and sine are returned in the other order."""
    cos, sin = build(pos, elements, base)
    return sin, cos


@FAULTS.add("RoPE in bfloat16", via=with_rope, kinds="rope.half", source="transformers #29285")
def rope_in_bfloat16(build: Function, pos: Any, elements: int, base: float) -> Any:
    """Cosine and sine are rounded to bfloat16."""
    cos, sin = build(pos, elements, base)
    return in_bfloat16(cos), in_bfloat16(sin)


@FAULTS.add("RoPE frequencies in bfloat16", via=with_rope, source="transformers #29285")
def rope_frequencies_in_bfloat16(build: Function, pos: Any, elements: int, base: float) -> Any:
    """The frequencies are rounded to bfloat16; errors grow with the position."""
    exponents = torch.arange(0, elements, 2) / elements
    angles = pos[None, :, None] * in_bfloat16(1 / base**exponents)
    return angles.cos(), angles.sin()


@FAULTS.add("RoPE exponents halved", via=with_rope, kinds="rope.base")
def rope_exponents_halved(build: Function, pos: Any, elements: int, base: float) -> Any:
    """The exponents of the frequencies advance by 1/n instead of 2/n."""
    angles = pos[None, :, None] / base ** (torch.arange(elements // 2) / elements)
    return angles.cos(), angles.sin()


@FAULTS.add("RoPE scaled linearly by 2", via=with_rope, kinds="rope.positions")
def rope_positions_interpolated(build: Function, pos: Any, elements: int, base: float) -> Any:
    """Positions are halved, as by linear RoPE scaling that the config has not."""
    return build(pos / 2, elements, base)


@FAULTS.add(
    "RoPE positions restart with each chunk",
    via=with_rope,
    step="prefill.1",
    kinds="rope.positions",
)
def rope_positions_restart_with_each_chunk(
    build: Function, pos: Any, elements: int, base: float
) -> Any:
    """Positions count from 0 in every call instead of going on."""
    return build(pos - pos[0], elements, base)


@FAULTS.add("key rows permuted", where=K, kinds="weight", source="transformers #31788")
def rope_keys_permuted_with_the_wrong_head_count(port: Port) -> Port:
    """K's rows are permuted as if there were as many key heads as query heads.

    Meta's interleaved-to-halves permutation, done once too often, with the wrong count.
    """

    def change(state: State) -> None:
        for name in [n for n in state if n.endswith("qkv_projection.weight")]:
            index = int(name.split(".")[1])
            heads = attention_config(port, index).num_heads
            q, k, v = split_qkv(port, index, state[name])
            pairs = k.reshape(heads, k.shape[0] // heads // 2, 2, k.shape[1])
            state[name] = torch.cat((q, pairs.transpose(1, 2).reshape(k.shape), v))

    return with_state(port, change)
