"""The weights on both sides: what a checkpoint's tensor is for, what the port holds in its place.

The roles follow from Hugging Face's names alone; whether they are right is seen when a sublayer
computed with them gives the oracle's values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

# role → the last parts of its tensor's name in any of the families' checkpoints
NAMES = {
    "embed": "embed_tokens|token_embeddings|embedder",
    "head": "lm_head",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "qkv": "qkv_proj",
    "o": "self_attn.dense|o_proj|out_proj",
    "gate": "gate_proj",
    "up": "up_proj|fc1",
    "gate_up": "proj_1|gate_up_proj",
    "down": "down_proj|fc2|proj_2",
    "q_norm": "q_norm",
    "k_norm": "k_norm",
    "attn_norm": "input_layernorm|attn_norm",
    "ff_norm": "ffn_norm|pre_feedforward_layernorm",
    "post_attn_norm": "post_attention_layernorm",
    "post_ff_norm": "post_feedforward_layernorm",
    "final_norm": "model.norm|transformer.norm|final_layernorm",
}
_ROLES = {role: re.compile(rf"(^|\.)({names})$") for role, names in NAMES.items()}
_LAYER = re.compile(r"\.layers\.(\d+)\.")

# The port's module for a role, by the Generative API's names; the first that has a weight counts.
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


class Roles:
    """A checkpoint's tensors by layer and role.

    Attributes:
        state: HF names → tensors.
    """

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self.state = state
        self._names: dict[tuple[int | None, str], str] = {}
        for name in state:
            path, _, kind = name.rpartition(".")
            layer = _LAYER.search(name)
            for role, pattern in _ROLES.items():
                if pattern.search(path):
                    key = int(layer.group(1)) if layer else None
                    self._names[key, role if kind == "weight" else f"{role}_{kind}"] = name
        for owner in {layer for layer, _ in self._names}:
            # Two norms a block: the one after attention is the feed-forward's own.
            if (owner, "ff_norm") not in self._names:
                for kind in ("", "_bias"):
                    found = self._names.pop((owner, f"post_attn_norm{kind}"), None)
                    if found is not None:
                        self._names[owner, f"ff_norm{kind}"] = found

    def name(self, layer: int | None, role: str) -> str | None:
        """``name(3, "down_bias")`` is the HF name of that tensor, or None."""
        return self._names.get((layer, role))

    def get(self, layer: int | None, role: str) -> torch.Tensor | None:
        name = self.name(layer, role)
        return None if name is None else self.state[name]

    def norm_weights(self, layer: int | None) -> Iterator[tuple[str, torch.Tensor]]:
        """Every norm's weight of a layer (None: the final norm), with its HF name."""
        for (owner, role), name in self._names.items():
            if owner == layer and role.endswith("norm"):
                yield name, self.state[name]


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
        """The weight, or for ``{role}_bias`` the bias; None where there is none."""
        kind = "bias" if role.endswith("_bias") else "weight"
        part = self.module(block, role.removesuffix("_bias"))
        value = getattr(part, kind, None)
        return value.detach() if isinstance(value, torch.Tensor) else None

    def eps(self, block: int | None, role: str) -> float | None:
        value = getattr(self.module(block, role), "eps", None)
        return float(value) if isinstance(value, float) else None

    def config(self, block: int) -> Any:
        """The attention's config of a block, or None."""
        return getattr(getattr(self._blocks[block], "config", None), "attn_config", None)

    def _find(self, block: int, name: str) -> nn.Module | None:
        for path, part in self._blocks[block].named_modules():
            if path.rsplit(".", 1)[-1] == name and hasattr(part, "weight"):
                return part
        return None
