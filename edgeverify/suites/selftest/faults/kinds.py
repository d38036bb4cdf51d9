"""Which kinds of cause, as the diagnosis names them, are true of which fault of the catalogue.

Several may be true of one fault: a layer that is loaded twice has the weights and the norm weights
of another. Where a fault is not listed under the kind that is named, the diagnosis is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Kind → ``Fault.cause`` of the faults that it is true of.
TRUE_OF: Mapping[str, tuple[str, ...]] = {
    "attention.groups": ("KV heads repeated in the wrong order",),
    "attention.heads": (
        "heads and elements exchanged",
        "heads joined in the wrong order",
    ),
    "attention.scale": (
        "score scale applied twice",
        "score scale left out",
        "score scale of head_dim",
        "score scale of hidden_size / heads",
        "score scale off by 0.1 %",
    ),
    "attention.softcap": (
        "score softcap 50",
        "score softcap added",
        "score softcap before the scale",
        "score softcap left out",
    ),
    "attention.window": (
        "sliding window + 1",
        "sliding window - 1",
        "sliding window added",
        "sliding window in the wrong layer",
        "sliding window in the wrong layers",
        "sliding window lost",
    ),
    "bias": (
        "head bias left out",
        "key bias left out",
        "output projection bias left out",
        "qkv bias left out",
    ),
    "cache.half": ("cache rounded to bfloat16",),
    "cache.kept": ("cache emptied in every call",),
    "cache.lost": ("cache not updated in decode",),
    "cache.row": (
        "cache row off by one",
        "cache row off by one in decode",
    ),
    "embedding.ids": (
        "first token replaced",
        "token ids off by one",
    ),
    "embedding.scale": (
        "embedding scale applied twice",
        "embedding scale left out",
        "embedding scale rounded to bfloat16",
        "embedding scale where there is none",
    ),
    "embedding.table": (
        "embedding table rounded to bfloat16",
        "last row of the embedding table lost",
        "row 0 of the embedding table zeroed",
        "weights rounded to float16",
    ),
    "factor": ("decode logits scaled",),
    "ff.activation": (
        "activation GELU for SiLU",
        "activation SiLU for GELU",
        "activation erf GELU for tanh GELU",
        "activation left out",
        "activation quick GELU for tanh GELU",
    ),
    "ff.gate": (
        "gate added instead of multiplied",
        "gate and up exchanged",
        "gate and up interleaved for halves",
    ),
    "half": ("logits rounded to bfloat16",),
    "head.softcap": (
        "final softcap 30",
        "final softcap added",
        "final softcap left out",
    ),
    "head.weight": (
        "head rounded to bfloat16",
        "head rows rolled",
        "head tied",
        "one head row zeroed",
        "weights rounded to float16",
    ),
    "mask": (
        "causal mask off by one",
        "decode mask off by one",
        "mask left out",
    ),
    "norm.bias": ("norm bias left out",),
    "norm.eps": (
        "final norm eps 1e-6",
        "norm eps 1e-6",
        "norm eps off by 1 %",
    ),
    "norm.eps_outside": ("norm eps outside the root",),
    "norm.kind": (
        "LayerNorm for RMSNorm",
        "RMSNorm for LayerNorm",
    ),
    "norm.missing": (
        "final norm left out",
        "post-attention norm left out",
        "post-feed-forward norm left out",
        "pre-feed-forward norm left out",
        "query norm left out",
    ),
    "norm.offset": (
        "norm offset added",
        "norm offset left out",
    ),
    "norm.place": (
        "post-attention norm behind the residual",
        "query and key norm after RoPE",
        "query norm over all heads",
    ),
    "norm.weight": (
        "layer loaded twice",
        "layers in the wrong order",
        "norm names exchanged",
        "norm weight not loaded",
        "query and key norm weights exchanged",
        "weight of another norm",
        "weights rounded to float16",
    ),
    "qkv.order": ("fused qkv read as interleaved",),
    "residual": (
        "residual around attention left out",
        "residual around the feed-forward left out",
    ),
    "rope.base": (
        "RoPE exponents halved",
        "rotary base 10000",
        "rotary base off by 1 %",
    ),
    "rope.half": ("RoPE in bfloat16",),
    "rope.missing": (
        "RoPE left out",
        "RoPE of k left out",
    ),
    "rope.pairs": ("RoPE interleaved for half-split",),
    "rope.positions": (
        "RoPE positions restart with each chunk",
        "RoPE scaled linearly by 2",
        "decode position off by one",
    ),
    "rope.share": (
        "rotary share 0.5",
        "rotary share 1",
    ),
    "rope.turn": ("RoPE sign of sine",),
    "rows": (
        "decode token one step late",
        "first token left out",
    ),
    "shape": (
        "logits of the last position alone",
        "vocabulary padded",
    ),
    "weight": (
        "down projection zero",
        "feed-forward bias left out",
        "feed-forward width too small",
        "fused qkv joined as interleaved",
        "gate and up exchanged",
        "k and v exchanged",
        "key rows permuted",
        "layer loaded twice",
        "layers in the wrong order",
        "one weight off by 10 %",
        "output projection rounded to float16",
        "output projection transposed",
        "query heads in the wrong order",
        "up projection rounded to bfloat16",
        "value projection rounded to bfloat16",
        "weights rounded to float16",
    ),
}


def is_true(kinds: Iterable[str], cause: str) -> bool:
    """Whether something was named, and nothing but what is true of the fault."""
    named = list(kinds)
    return bool(named) and all(cause in TRUE_OF.get(kind, ()) for kind in named)
