"""A config and seeded weights on disk, read by transformers here and by mlx-lm there."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgeverify.hf.checkpoints import seeded
from edgeverify.hf.config import meta_model, reference_config

TOKENS = 60
# Calls of the cached run: two chunks, then single tokens.
STEPS = (24, 31, 1, 1, 1, 1, 1)


@dataclass(frozen=True)
class Checkpoint:
    """A directory as the Hub has them: config.json and one model.safetensors in float32."""

    directory: Path
    config: Mapping[str, Any]

    @property
    def tokens(self) -> np.ndarray:
        """(1, TOKENS) ids."""
        rng = np.random.default_rng(17)
        return rng.integers(0, self.config["vocab_size"], (1, TOKENS))

    def transformers_model(self) -> torch.nn.Module:
        """As a user loads it; OpenELM is registered by then."""
        from transformers import AutoModelForCausalLM

        reference_config(self.config)
        model, info = AutoModelForCausalLM.from_pretrained(
            self.directory,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        return model.eval()

    def transformers_logits(self) -> np.ndarray:
        """(TOKENS, V), in one call."""
        with torch.no_grad():
            output = self.transformers_model()(torch.from_numpy(self.tokens), use_cache=False)
        return output.logits[0].numpy()

    def mlx_model(self) -> Any:
        """mlx-lm's model of the same ``model_type``; every tensor is used and none is missing."""
        module = importlib.import_module(f"mlx_lm.models.{self.config['model_type']}")
        text = (self.directory / "config.json").read_text(encoding="utf-8")
        model = module.Model(module.ModelArgs.from_dict(json.loads(text)))
        model.load_weights(str(self.directory / "model.safetensors"), strict=True)
        return model.eval()

    def mlx_logits(self, *, cached: bool) -> np.ndarray:
        """(TOKENS, V), in one call or step by step with mlx-lm's own KV cache."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        model = self.mlx_model()
        if not cached:
            return np.array(model(mx.array(self.tokens)))[0]
        assert sum(STEPS) == TOKENS
        cache, rows, start = make_prompt_cache(model), [], 0
        for length in STEPS:
            chunk = mx.array(self.tokens[:, start : start + length])
            rows.append(np.array(model(chunk, cache=cache))[0])
            start += length
        return np.concatenate(rows)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[Mapping[str, Any]], Checkpoint]:
    """Writes seeded weights for an HF config; ``...`` as a value leaves its key out."""

    def write(config: Mapping[str, Any]) -> Checkpoint:
        kept = {key: value for key, value in config.items() if value is not ...}
        tensors = seeded.draw_tensors(seeded.plan_draws(meta_model(kept)), seed=23)
        (tmp_path / "config.json").write_text(json.dumps(kept), encoding="utf-8")
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return Checkpoint(tmp_path, kept)

    return write


@pytest.fixture
def worst_row() -> Callable[[np.ndarray, np.ndarray], float]:
    """Relative L2 distance of the worst row of (T, V)."""

    def distance(got: np.ndarray, want: np.ndarray) -> float:
        assert got.shape == want.shape
        norm = np.linalg.norm
        return float((norm(got - want, axis=-1) / norm(want, axis=-1)).max())

    return distance
