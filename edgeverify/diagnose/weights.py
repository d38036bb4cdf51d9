"""The weights on both sides: the role of a checkpoint's tensor, and the port's tensor for it.

The roles follow only from Hugging Face's names. A sublayer computed with them shows whether they
are right: it then gives the oracle's values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# The port's module for a role, by the Generative API's names; the first with a weight counts.
PORT_NAMES = {
    "qkv": ("qkv_projection",),
    "o": ("output_projection",),
    "gate": ("w1",),
    "up": ("w3",),
    "down": ("w2",),
    "q_norm": ("query_norm",),
    "k_norm": ("key_norm",),
    "attn_norm": ("pre_atten_norm",),
    "ff_norm": ("pre_ff_norm", "post_atten_norm"),
    "post_attn_norm": ("post_atten_norm",),
    "post_ff_norm": ("post_ff_norm",),
}


class PortWeights:
    """The re-authored model's tensors by block and role."""

    def __init__(self, model: Any) -> None:
        self._blocks = list(model.transformer_blocks)
        self._ends = {
            "embed": getattr(model, "tok_embedding", None),
            "head": getattr(model, "lm_head", None),
            "final_norm": getattr(model, "final_norm", None),
        }

    def module(self, block: int | None, role: str) -> nn.Module | None:
        if block is None:
            part = self._ends.get(role)
            return part if isinstance(part, nn.Module) else None
        norm_in_ff = self._find(block, "pre_ff_norm") is not None
        for name in PORT_NAMES.get(role, ()):
            part = self._find(block, name)
            if role == "post_attn_norm" and not norm_in_ff:
                return None
            if part is not None:
                return part
        return None

    def get(self, block: int | None, role: str) -> torch.Tensor | None:
        """Returns the weight, or for ``{role}_bias`` the bias; None if there is none."""
        kind = "bias" if role.endswith("_bias") else "weight"
        part = self.module(block, role.removesuffix("_bias"))
        value = getattr(part, kind, None)
        return value.detach() if isinstance(value, torch.Tensor) else None

    def eps(self, block: int | None, role: str) -> float | None:
        value = getattr(self.module(block, role), "eps", None)
        return float(value) if isinstance(value, float) else None

    def config(self, block: int) -> Any:
        """Returns the attention's config of a block, or None."""
        return getattr(getattr(self._blocks[block], "config", None), "attn_config", None)

    def _find(self, block: int, name: str) -> nn.Module | None:
        for path, part in self._blocks[block].named_modules():
            if path.rsplit(".", 1)[-1] == name and hasattr(part, "weight"):
                return part
        return None
