"""Faults of the attention mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from litert_torch.generative.layers import scaled_dot_product_attention as sdpa
from litert_torch.generative.layers.model_config import AttentionType

from edgeverify.suites.selftest.faults.attention import KERNEL, OUT
from edgeverify.suites.selftest.faults.changes import (
    Function,
    with_attention,
    with_block_configs,
    with_config,
    with_function,
    with_mask,
)
from edgeverify.suites.selftest.faults.fault import REFUSED, Fault
from edgeverify.suites.selftest.faults.ports import ALL
from edgeverify_models.port import Port

WINDOWLESS = tuple(name for name in ALL if name != "gemma2")
LOCAL = ("blocks.0.attn.out", "blocks.2.attn.out")  # of the tiny Gemma 2: even layers slide
INF = float("inf")
# Larger than any score of the seeded models, as a finite mask is chosen to be.
FINITE = -30.0


def _band(mask: torch.Tensor, last: int, window: int | None = None) -> torch.Tensor:
    """A mask like ``mask`` in which row i sees columns j with i - window < j <= i + last."""
    rows = torch.arange(mask.shape[-1])
    ahead = rows[None] - rows[:, None]
    seen = ahead <= last
    if window is not None:
        seen = seen & (ahead > -window)
    return torch.where(seen, 0.0, -INF)[None, None]


def _widened(mask: torch.Tensor) -> torch.Tensor:
    """One more column ahead of each row; a window's lower edge stays."""
    return torch.maximum(mask, torch.where(_exactly_next(mask), 0.0, -INF))


def _exactly_next(mask: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(mask.shape[-1])
    return (rows[None] - rows[:, None] == 1)[None, None]


def _without_itself(mask: torch.Tensor) -> torch.Tensor:
    """Row i no longer sees column i; row 0, which has no other, still does."""
    diagonal = torch.eye(mask.shape[-1], dtype=torch.bool)
    diagonal[0, 0] = False
    return mask.masked_fill(diagonal[None, None], -INF)


def _in_decode(args: list[Any]) -> None:
    """In a decode step the mask is that of the position before."""
    mask, position = args[2], args[3]
    if len(position) == 1:
        columns = torch.arange(mask.shape[-1])
        args[2] = mask.masked_fill(columns == position, -INF)


def _of_the_first_rows(args: list[Any]) -> None:
    """Every chunk has the mask of a conversation's beginning."""
    mask, position = args[2], args[3]
    late = torch.arange(mask.shape[-1]) > torch.arange(len(position))[:, None]
    args[2] = torch.where(late, -INF, mask)


def _scaled_with_the_scores(kernel: Function) -> Function:
    """The mask goes through the scale of the scores; a finite one becomes too small."""

    def changed(q: Any, k: Any, v: Any, size: int, **given: Any) -> Any:
        mask = given.pop("mask").clamp(min=FINITE) * size**-0.5
        return kernel(q, k, v, size, mask=mask, **given)

    return changed


def _window(block: Any, size: int | None) -> None:
    attention = block.attn_config
    attention.attn_type = AttentionType.GLOBAL if size is None else AttentionType.LOCAL_SLIDING
    attention.sliding_window_size = size


def _fourth_layer_slides(port: Port) -> Port:
    window = port.hf_configs["tiny"]["sliding_window"]
    return with_block_configs(port, lambda block: _window(block, window), (3,))


def _other_layers_slide(port: Port) -> Port:
    kinds = ["full_attention", "sliding_attention"] * 2
    return with_config(port, layer_types=kinds)


def _window_changed(by: int) -> Any:
    def change(port: Port) -> Port:
        return with_config(port, sliding_window=port.hf_configs["tiny"]["sliding_window"] + by)

    return change


def _single_mask(port: Port) -> Port:
    """The mask that serves all layers is the global one: local layers lose their window."""
    changed = replace(port, mask_kinds=("global",))

    class Shared(port.model_class):  # type: ignore[misc, name-defined]
        def forward(self, *args: Any, mask: Any = None, **kwargs: Any) -> Any:
            if mask is not None and not isinstance(mask, Mapping):
                mask = {"global": mask, "local": mask}
            return super().forward(*args, mask=mask, **kwargs)

    return replace(changed, model_class=Shared)


FAULTS = (
    Fault(
        name="mask_sees_one_token_ahead",
        area="mask",
        description="The causal mask is off by one: a token sees the next one.",
        cause="causal mask off by one",
        ports=ALL,
        where=OUT,
        port=lambda port: with_mask(port, _widened),
    ),
    Fault(
        name="mask_hides_the_token_itself",
        area="mask",
        description="The causal mask is off by one: a token does not see itself.",
        cause="causal mask off by one",
        ports=ALL,
        where=OUT,
        port=lambda port: with_mask(port, _without_itself),
    ),
    Fault(
        name="mask_left_out",
        area="mask",
        description="Every token sees every row of the cache, empty ones included.",
        cause="mask left out",
        ports=ALL,
        where=OUT,
        port=lambda port: with_mask(port, torch.zeros_like),
    ),
    Fault(
        name="decode_mask_off_by_one",
        area="mask",
        description="A decode step does not see the token that it is fed with.",
        cause="decode mask off by one",
        ports=ALL,
        where=OUT,
        step="decode.0",
        port=lambda port: with_attention(port, _in_decode),
    ),
    Fault(
        name="mask_of_the_first_chunk_for_all",
        area="mask",
        description="Later chunks have the mask of the first one: they see its columns alone.",
        cause="mask ignores the position",
        ports=ALL,
        where=OUT,
        step="prefill.1",
        port=lambda port: with_attention(port, _of_the_first_rows),
    ),
    Fault(
        name="mask_scaled_with_the_scores",
        area="mask",
        description="The kernel scales a finite mask together with the scores.",
        cause="mask scaled",
        ports=WINDOWLESS,
        where=OUT,
        port=lambda port: with_function(port, sdpa, KERNEL, _scaled_with_the_scores),
        source="tt-metal #42891",
    ),
    Fault(
        name="mask_value_too_small",
        area="mask",
        description="Hidden scores are lowered by 9, not to minus infinity.",
        cause="mask value -9",
        ports=ALL,
        where=OUT,
        port=lambda port: with_mask(port, lambda mask: mask.clamp(min=-9.0)),
        source="litert-torch bd494dc",
    ),
    Fault(
        name="window_where_there_is_none",
        area="mask",
        description="Tokens further back than 13 are hidden, in a family without a window.",
        cause="sliding window added",
        ports=WINDOWLESS,
        where=OUT,
        port=lambda port: with_mask(port, lambda mask: _band(mask, 0, 13)),
    ),
    Fault(
        name="window_lost",
        area="mask",
        description="Local layers have the global mask.",
        cause="sliding window lost",
        ports=("gemma2",),
        where=LOCAL,
        port=lambda port: with_block_configs(port, lambda block: _window(block, None)),
        source="litert-torch 45017e4",
    ),
    Fault(
        name="window_lost_with_one_input_mask",
        area="mask",
        description="Masks are inputs, and the same one is handed to local and global layers.",
        cause="sliding window lost",
        ports=("gemma2",),
        where=LOCAL,
        port=_single_mask,
        selectors={"mask_as_input": True},
        source="litert-torch 45017e4",
    ),
    Fault(
        name="single_input_mask_refused",
        area="mask",
        description="Masks are inputs, and the port is given one although its layers need two.",
        cause="one input mask for all layers",
        ports=("gemma2",),
        where=(REFUSED,),
        told="expected a dict of 'global' and 'local'",
        port=lambda port: replace(port, mask_kinds=("global",)),
        selectors={"mask_as_input": True},
        source="litert-torch 45017e4",
    ),
    Fault(
        name="window_one_longer",
        area="mask",
        description="Local layers see one more token.",
        cause="sliding window + 1",
        ports=("gemma2",),
        where=LOCAL,
        port=_window_changed(1),
    ),
    Fault(
        name="window_one_shorter",
        area="mask",
        description="Local layers see one token less.",
        cause="sliding window - 1",
        ports=("gemma2",),
        where=LOCAL,
        port=_window_changed(-1),
    ),
    Fault(
        name="fourth_layer_slides",
        area="mask",
        description="Block 3, which is global, has a window.",
        cause="sliding window in the wrong layer",
        ports=("gemma2",),
        where=("blocks.3.attn.out",),
        port=_fourth_layer_slides,
    ),
    Fault(
        name="odd_layers_slide",
        area="mask",
        description="Odd layers slide instead of even ones.",
        cause="sliding window in the wrong layers",
        ports=("gemma2",),
        where=OUT,
        port=_other_layers_slide,
    ),
)
