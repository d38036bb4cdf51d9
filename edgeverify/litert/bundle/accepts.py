"""Checks, only from a file's signatures, whether LiteRT-LM can use it."""

from __future__ import annotations

from edgeverify.core.errors import ArtifactError
from edgeverify.litert.flatbuffer import ModelFile

# The inputs that LiteRT-LM fills in decode, each with the names that it knows.
ENGINE_INPUTS = (
    ("tokens", "token_ids"),
    ("input_pos", "positions"),
    ("kv_cache_k_0",),
    ("kv_cache_v_0",),
)


def litert_lm_accepts(file: ModelFile) -> tuple[bool, str]:
    """Returns whether LiteRT-LM would run a file correctly, and why; all observed on 0.18.1.

    It reads the cache's length from axis 2 of ``kv_cache_k_0``, where the transposed layout has it.
    It loads a file with the default layout and 2 KV heads, but refuses every prompt (``10 >= 2``
    tokens). It needs a signature ``decode`` with logits, and fills one mask; with several masks it
    runs and answers wrongly. It accepts a prefill without logits, and any name that begins with
    ``prefill``.
    """
    if "decode" not in file.signatures or not any(s.startswith("prefill") for s in file.signatures):
        return False, "it needs a signature decode and one whose name begins with prefill"
    taken = file.signature("decode").inputs
    lacking = [n[0] for n in ENGINE_INPUTS if not any(name in taken for name in n)]
    if lacking:
        return False, f"decode has no input {' or '.join(lacking)}"
    if "logits" not in file.signature("decode").outputs:
        return False, "decode returns no logits"
    masks = [name for name in taken if name.startswith("mask") and name != "mask"]
    if masks:
        return False, (
            f"it fills one input called mask, not {' and '.join(sorted(masks))}, and would answer "
            "wrongly"
        )
    try:
        layout = file.kv_layout()
    except ArtifactError as error:
        return False, error.what
    read = file.shape("decode", "kv_cache_k_0")[2]
    if layout != "transposed":
        return False, (
            f"it would take the {read} KV heads for the cache's length, which it reads from the "
            "transposed layout (--kv-layout transposed)"
        )
    return True, f"it reads a cache of {read} rows from the transposed layout"
