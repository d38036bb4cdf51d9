"""Ports whose cache, mask, padding or batch is broken in one way, for tests that must see it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from litert_torch.generative.layers import kv_cache as kv_utils
from litert_torch.generative.layers import scaled_dot_product_attention as sdpa
from torch import nn

import edgeverify_models as models
from edgeverify_models.port import Port
from tests.variants import with_model

Forward = Callable[..., Any]


def _with_attention(port: Port, wrap: Callable[[Forward, int], Forward]) -> Port:
    """A port whose attention of each block is wrapped: (x, rope, mask, input_pos, cache) → …"""

    def change(model: nn.Module) -> None:
        for index, block in enumerate(model.transformer_blocks):
            block.atten_func.forward = wrap(block.atten_func.forward, index)

    return with_model(port, change)


def decode_mask_off_by_one() -> Port:
    """A decode step does not see its own row."""

    def wrap(attend: Forward, index: int) -> Forward:
        def forward(x: Any, rope: Any, mask: Any, input_pos: Any, *rest: Any) -> Any:
            if x.shape[1] == 1:
                mask = mask.roll(-1, dims=-1)
            return attend(x, rope, mask, input_pos, *rest)

        return forward

    return _with_attention(models.load("tinyllama"), wrap)


def row_off_by_one_from_the_second_step_on() -> Port:
    """Every step but the first writes its rows one too early."""

    def wrap(attend: Forward, index: int) -> Forward:
        def forward(x: Any, rope: Any, mask: Any, input_pos: Any, *rest: Any) -> Any:
            return attend(x, rope, mask, input_pos - (input_pos[0] > 0).int(), *rest)

        return forward

    return _with_attention(models.load("tinyllama"), wrap)


def pads_that_write() -> Port:
    """The last row of a chunk, a pad where there are any, is also written to row 0."""

    def wrap(attend: Forward, index: int) -> Forward:
        def forward(x: Any, rope: Any, mask: Any, input_pos: Any, *rest: Any) -> Any:
            out, entry = attend(x, rope, mask, input_pos, *rest)
            if x.shape[1] == 1:
                return out, entry
            last = int(input_pos[-1])
            k, v = entry.k_cache.clone(), entry.v_cache.clone()
            k[:, 0], v[:, 0] = k[:, last], v[:, last]
            return out, kv_utils.KVCacheEntry(k, v, entry.kv_layout)

        return forward

    return _with_attention(models.load("smollm"), wrap)


def window_off_by(shift: int) -> Port:
    """The masks that are built inside have another window; given ones are as they are given."""
    port = models.load("gemma2")

    def change(model: nn.Module) -> None:
        if model.mask_cache is not None:
            local = model.mask_cache["local"]
            size = local.shape[-1]
            edge = torch.arange(size)[:, None] - torch.arange(size)[None]
            width = port.hf_configs["tiny"]["sliding_window"] + shift
            seen = (edge >= 0) & (edge < width)
            model.mask_cache["local"] = torch.where(seen, 0.0, float("-inf"))[None, None]

    return with_model(port, change)


def one_mask_for_all_layers() -> Port:
    def change(model: nn.Module) -> None:
        if model.mask_cache is not None:
            model.mask_cache["local"] = model.mask_cache["global"]

    return with_model(models.load("gemma2"), change)


def positions_wrong_in_decode() -> Port:
    """RoPE turns a decode step by one position too many."""

    def change(model: nn.Module) -> None:
        build = model.config.build_rope

        def shifted(input_pos: torch.Tensor, *rest: Any) -> Any:
            return build(input_pos + 1 if len(input_pos) == 1 else input_pos, *rest)

        model.config.build_rope = shifted

    return with_model(models.load("tinyllama"), change)


def half_precision_rope() -> Port:
    def change(model: nn.Module) -> None:
        build = model.config.build_rope

        def rounded(*args: Any) -> Any:
            return tuple(part.half().float() for part in build(*args))

        model.config.build_rope = rounded

    return with_model(models.load("tinyllama"), change)


def k_and_v_swapped_at_16() -> Port:
    """In prefills of 16 tokens the cache gets V for K and K for V."""

    def wrap(attend: Forward, index: int) -> Forward:
        def forward(x: Any, rope: Any, mask: Any, input_pos: Any, *rest: Any) -> Any:
            out, entry = attend(x, rope, mask, input_pos, *rest)
            if x.shape[1] == 16:
                entry = kv_utils.KVCacheEntry(entry.v_cache, entry.k_cache, entry.kv_layout)
            return out, entry

        return forward

    return _with_attention(models.load("tinyllama"), wrap)


def sees_the_next_row() -> Port:
    """Each query sees one row that was not yet written."""

    def wrap(attend: Forward, index: int) -> Forward:
        def forward(x: Any, rope: Any, mask: Any, input_pos: Any, *rest: Any) -> Any:
            wider = torch.maximum(mask, mask.roll(1, dims=-1))
            wider[..., 0] = mask[..., 0]
            return attend(x, rope, wider, input_pos, *rest)

        return forward

    return _with_attention(models.load("tinyllama"), wrap)


def remembers_the_longest_position() -> Port:
    """It keeps a state of its own: within a conversation, what was given up is not forgotten."""

    def change(model: nn.Module) -> None:
        longest = [0]
        right = model.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            first, last = (int(kwargs["input_pos"][at]) for at in (0, -1))
            kept, output = longest[0] if first else 0, right(*args, **kwargs)
            longest[0] = max(kept, last)
            if kept > last:
                output["logits"] = output["logits"] * 1.001
            return output

        model.forward = forward

    return with_model(models.load("tinyllama"), change)


def transposed_v_off() -> Port:
    """V is scaled where the cache has the transposed layout."""

    def wrap(attend: Forward, index: int) -> Forward:
        def forward(x: Any, rope: Any, mask: Any, input_pos: Any, *rest: Any) -> Any:
            out, entry = attend(x, rope, mask, input_pos, *rest)
            if entry.kv_layout == kv_utils.KV_LAYOUT_TRANSPOSED:
                v = entry.v_cache * 1.0001
                entry = kv_utils.KVCacheEntry(entry.k_cache, v, entry.kv_layout)
            return out, entry

        return forward

    return _with_attention(models.load("phi2"), wrap)


def rows_of_a_batch_mixed() -> Port:
    def wrap(attend: Forward, index: int) -> Forward:
        def forward(x: Any, rope: Any, mask: Any, input_pos: Any, *rest: Any) -> Any:
            out, entry = attend(x, rope, mask, input_pos, *rest)
            return out + 1e-4 * out.roll(1, dims=0) * (x.shape[0] > 1), entry

        return forward

    return _with_attention(models.load("smollm"), wrap)


def attention_of_its_own() -> Port:
    """Right, but its masks and its RoPE pass none of the places where they are read."""

    def wrap(attend: Forward, index: int) -> Forward:
        originals = {name: getattr(sdpa, name) for name in vars(sdpa) if name.startswith("scaled")}
        update = kv_utils.update

        def forward(*args: Any) -> Any:
            with ExitStack() as stack:
                for name, function in originals.items():
                    stack.enter_context(mock.patch.object(sdpa, name, function))
                stack.enter_context(mock.patch.object(kv_utils, "update", update))
                return attend(*args)

        return forward

    return _with_attention(models.load("tinyllama"), wrap)
