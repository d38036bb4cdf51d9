"""Faults of the attention mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from litert_torch.generative.layers.model_config import AttentionType

from edgeverify.suites.selftest.faults.attention import OUT, with_kernel
from edgeverify.suites.selftest.faults.fault import Faults
from edgeverify.suites.selftest.faults.port_changes import (
    Function,
    with_attention,
    with_block_configs,
    with_config,
    with_mask,
)
from edgeverify.suites.selftest.faults.ports import ALL_BUT_GEMMA2
from edgeverify_models.port import Port

FAULTS = Faults("mask", where=OUT)
LOCAL = "blocks.0.attn.out blocks.2.attn.out"  # of the tiny Gemma 2: even layers slide
ONE_MASK = {"mask_as_input": True}
ONE_MASK_SOURCE = "litert-torch 45017e4"
INF = float("inf")
# Larger than any score of the seeded models, as a finite mask is chosen to be.
FINITE = -30.0


def _columns_ahead(mask: torch.Tensor) -> torch.Tensor:
    """(S, S): how far a column lies ahead of its row."""
    rows = torch.arange(mask.shape[-1])
    return rows[None] - rows[:, None]


def _slide(block: Any, size: int | None) -> None:
    """A block's config has a window, or none."""
    attention = block.attn_config
    attention.attn_type = AttentionType.GLOBAL if size is None else AttentionType.LOCAL_SLIDING
    attention.sliding_window_size = size


def _with_window_changed(port: Port, by: int) -> Port:
    return with_config(port, sliding_window=port.hf_configs["tiny"]["sliding_window"] + by)


_window_fault = partial(FAULTS.add, ports="gemma2", where=LOCAL, kinds="attention.window")


@FAULTS.add("causal mask off by one", via=with_mask, kinds="mask")
def mask_sees_one_token_ahead(mask: torch.Tensor) -> torch.Tensor:
    """The causal mask is off by one: a token sees the next one.

    One more column ahead of each row; a window's lower edge stays.
    """
    return torch.maximum(mask, torch.where(_columns_ahead(mask) == 1, 0.0, -INF)[None, None])


@FAULTS.add("causal mask off by one", via=with_mask, kinds="mask")
def mask_hides_the_token_itself(mask: torch.Tensor) -> torch.Tensor:
    """The causal mask is off by one: a token does not see itself.

    Row i no longer sees column i; row 0, which has no other, still does.
    """
    diagonal = torch.eye(mask.shape[-1], dtype=torch.bool)
    diagonal[0, 0] = False
    return mask.masked_fill(diagonal[None, None], -INF)


@FAULTS.add("mask left out", via=with_mask, kinds="mask")
def mask_left_out(mask: torch.Tensor) -> torch.Tensor:
    """Every token sees every row of the cache, empty ones included."""
    return torch.zeros_like(mask)


@FAULTS.add("decode mask off by one", via=with_attention, step="decode.0", kinds="mask")
def decode_mask_off_by_one(args: list[Any]) -> None:
    """A decode step does not see the token that it is fed with."""
    mask, position = args[2], args[3]
    if len(position) == 1:
        columns = torch.arange(mask.shape[-1])
        args[2] = mask.masked_fill(columns == position, -INF)


@FAULTS.add("mask ignores the position", via=with_attention, step="prefill.1")
def mask_of_the_first_chunk_for_all(args: list[Any]) -> None:
    """Later chunks have the mask of the first one: they see its columns alone."""
    mask, position = args[2], args[3]
    late = torch.arange(mask.shape[-1]) > torch.arange(len(position))[:, None]
    args[2] = torch.where(late, -INF, mask)


@FAULTS.add("mask scaled", via=with_kernel, ports=ALL_BUT_GEMMA2, source="tt-metal #42891")
def mask_scaled_with_the_scores(
    kernel: Function, q: Any, k: Any, v: Any, size: int, **given: Any
) -> Any:
    """The kernel scales a finite mask together with the scores."""
    mask = given.pop("mask").clamp(min=FINITE) * size**-0.5
    return kernel(q, k, v, size, mask=mask, **given)


@FAULTS.add("mask value -9", via=with_mask, source="litert-torch bd494dc")
def mask_value_too_small(mask: torch.Tensor) -> torch.Tensor:
    """Hidden scores are lowered by 9, not to minus infinity."""
    return mask.clamp(min=-9.0)


@FAULTS.add("sliding window added", via=with_mask, ports=ALL_BUT_GEMMA2, kinds="attention.window")
def window_where_there_is_none(mask: torch.Tensor) -> torch.Tensor:
    """Tokens further back than 13 are hidden, in a family without a window."""
    ahead = _columns_ahead(mask)
    return torch.where((ahead <= 0) & (ahead > -13), 0.0, -INF)[None, None]


@_window_fault("sliding window lost", via=with_block_configs, source=ONE_MASK_SOURCE)
def window_lost(block: Any) -> None:
    """Local layers have the global mask."""
    _slide(block, None)


@_window_fault("sliding window lost", selectors=ONE_MASK, source=ONE_MASK_SOURCE)
def window_lost_with_one_input_mask(port: Port) -> Port:
    """Masks are inputs, and the same one is handed to local and global layers.

    The mask that serves all layers is the global one: local layers lose their window.
    """

    class Shared(port.model_class):  # type: ignore[misc, name-defined]
        def forward(self, *args: Any, mask: Any = None, **kwargs: Any) -> Any:
            if mask is not None and not isinstance(mask, Mapping):
                mask = {"global": mask, "local": mask}
            return super().forward(*args, mask=mask, **kwargs)

    return replace(port, mask_kinds=("global",), model_class=Shared)


@FAULTS.add(
    "one input mask for all layers",
    ports="gemma2",
    refusal="expected a dict of 'global' and 'local'",
    selectors=ONE_MASK,
    source=ONE_MASK_SOURCE,
)
def single_input_mask_refused(port: Port) -> Port:
    """Masks are inputs, and the port is given one although its layers need two."""
    return replace(port, mask_kinds=("global",))


@_window_fault("sliding window + 1")
def window_one_longer(port: Port) -> Port:
    """Local layers see one more token."""
    return _with_window_changed(port, 1)


@_window_fault("sliding window - 1")
def window_one_shorter(port: Port) -> Port:
    """Local layers see one token less."""
    return _with_window_changed(port, -1)


@FAULTS.add(
    "sliding window in the wrong layer",
    ports="gemma2",
    where="blocks.3.attn.out",
    kinds="attention.window",
)
def fourth_layer_slides(port: Port) -> Port:
    """Block 3, which is global, has a window."""
    window = port.hf_configs["tiny"]["sliding_window"]
    return with_block_configs(port, partial(_slide, size=window), (3,))


@FAULTS.add("sliding window in the wrong layers", ports="gemma2", kinds="attention.window")
def odd_layers_slide(port: Port) -> Port:
    """Odd layers slide instead of even ones."""
    return with_config(port, layer_types=["full_attention", "sliding_attention"] * 2)
