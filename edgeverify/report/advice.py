"""What to look at when a tap is the first that differs.

A tap that differs while everything before it agrees leaves few suspects: the operations between
the last agreeing tap and this one.
"""

from __future__ import annotations

import re

_STEP = re.compile(r"^[^/]*/")
_INDEX = re.compile(r"^(blocks|kv)\.\d+\.")

# Keyed by the tap without its step and block number. The texts say "agree" of the taps that come
# before, because a hint is asked for the first tap that does not.
HINTS = {
    "embed": "the embedding: its scale (Gemma multiplies by sqrt(hidden), in which dtype?) and the "
    "embedding table's tensor name",
    "attn_norm": "the norm before attention: RMSNorm or LayerNorm, eps, a weight of (1 + w), its "
    "tensor name; for blocks after the first, what is added to the residual stream",
    "attn.q": "the query projection: order of q, k, v in the fused tensor, bias, query norm; if "
    "position 0 agrees and later rows do not, RoPE (base, rotary share, interleaved or halves)",
    "attn.k": "the key projection: order of q, k, v in the fused tensor, number of KV groups, "
    "bias, key norm; if position 0 agrees and later rows do not, RoPE (base, rotary share, "
    "interleaved or halves)",
    "attn.v": "the value projection: order of q, k, v in the fused tensor, number of KV groups, "
    "bias",
    "attn.out": "attention itself, as q, k and v agree: the mask (causal, sliding window, which "
    "layers are local), the softmax scale, the score softcap, the order of heads, the output "
    "projection and its bias",
    "ff_norm": "the norm before the feed-forward (eps, weight, tensor name), the norm after "
    "attention, and the residual added there (parallel or sequential)",
    "ff.out": "the feed-forward: activation (exact or tanh GELU, SiLU), gate and up swapped, width "
    "of this layer, bias",
    "out": "the block's end, as ff.out agrees: the norm after the feed-forward and the residual",
    "final_norm": "the final norm: RMSNorm or LayerNorm, eps, a weight of (1 + w), its tensor name",
    "logits": "the LM head, as final_norm agrees: its weight (tied or its own), bias, final "
    "softcap",
    "kv.k": "the cache's K: the row that is written (input_pos), the layout, the valid length; "
    "attn.k agrees",
    "kv.v": "the cache's V: the row that is written (input_pos), the layout, the valid length; "
    "attn.v agrees",
}
UNKNOWN = "the operations between the last tap that agrees and this one"


def hint(tap: str) -> str:
    """What to look at first when ``tap`` is the first that differs.

    Args:
        tap: with or without its step: ``prefill.0/blocks.3.attn.k`` or ``blocks.3.attn.k``.
    """
    name = _STEP.sub("", tap)
    match = _INDEX.match(name)
    if match:
        name = name[match.end() :]
        if match.group(1) == "kv":
            name = f"kv.{name}"
    return HINTS.get(name, UNKNOWN)
