"""Maps a checkpoint's tensors to their roles; the only table of Hugging Face's names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch

# role → the last parts of its tensor's name, in the checkpoints of all families
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
            # A block with two norms: the one after attention is the feed-forward's own.
            if (owner, "ff_norm") not in self._names:
                for kind in ("", "_bias"):
                    found = self._names.pop((owner, f"post_attn_norm{kind}"), None)
                    if found is not None:
                        self._names[owner, f"ff_norm{kind}"] = found

    def name(self, layer: int | None, role: str) -> str | None:
        """Returns a tensor's HF name, e.g. of ``name(3, "down_bias")``, or None."""
        return self._names.get((layer, role))

    def get(self, layer: int | None, role: str) -> torch.Tensor | None:
        name = self.name(layer, role)
        return None if name is None else self.state[name]

    def norm_weights(self, layer: int | None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields each norm weight of a layer with its HF name; layer None is the final norm."""
        for (owner, role), name in self._names.items():
            if owner == layer and role.endswith("norm"):
                yield name, self.state[name]
