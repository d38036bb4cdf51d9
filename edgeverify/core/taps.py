"""Defines taps: the standard names of the points that are compared.

A tap's key starts with its step: ``prefill.0/blocks.3.attn.k``. Shapes: activations (B, T, C); q,
k, v and the KV cache (B, T, N, H), in whatever layout the implementation stores them. Only the rows
of real tokens are recorded; the KV cache is cut to its valid rows.

``attn_norm`` is the input of the attention's projections and ``ff_norm`` the input of the
feed-forward's, so that families with one shared norm (Phi-2) have both. ``attn.out`` and ``ff.out``
are the last projections' outputs, before any norm that follows them (Gemma 2).
"""

from __future__ import annotations

import re

EMBED = "embed"
FINAL_NORM = "final_norm"
LOGITS = "logits"
BLOCK_TAPS = (
    "attn_norm",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.out",
    "ff_norm",
    "ff.out",
    "out",
)
CACHE_TAPS = ("attn_norm", "attn.k", "attn.v")

_BLOCK = re.compile(r"^(?:blocks|kv)\.(\d+)\.")


def block(index: int, tap: str) -> str:
    """Returns a block's tap: ``block(3, "attn.k")`` is ``"blocks.3.attn.k"``."""
    return f"blocks.{index}.{tap}"


def kv(index: int, which: str) -> str:
    """Names the cache of a block after the step: ``kv(3, "k")`` is ``"kv.3.k"``."""
    return f"kv.{index}.{which}"


def standard_taps(num_blocks: int, *, logits: bool = True) -> tuple[str, ...]:
    """Returns every tap of one step in forward order.

    Args:
        num_blocks: the number of transformer blocks of the model.
        logits: whether the step computes logits. If not, the last block needs only what goes into
            its KV cache, and a converted file leaves the rest out.
    """
    names = [EMBED]
    for index in range(num_blocks):
        last = index == num_blocks - 1
        names += [block(index, t) for t in (CACHE_TAPS if last and not logits else BLOCK_TAPS)]
    if logits:
        names += [FINAL_NORM, LOGITS]
    for index in range(num_blocks):
        names += [kv(index, "k"), kv(index, "v")]
    return tuple(names)


def is_outer(tap: str) -> bool:
    """Checks whether the tap is an output of the model itself: logits or the KV cache."""
    return tap == LOGITS or tap.startswith("kv.")


def block_index(tap: str) -> int | None:
    """Returns the block that a tap belongs to, or None."""
    match = _BLOCK.match(tap)
    return int(match.group(1)) if match else None


def split(key: str) -> tuple[str, str]:
    """Splits a key: ``"prefill.0/blocks.3.out"`` → ``("prefill.0", "blocks.3.out")``."""
    step, _, tap = key.partition("/")
    return step, tap
