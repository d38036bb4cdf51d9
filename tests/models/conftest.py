"""What the tests of all families share: a family's port beside transformers' own model of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pytest
import torch
from litert_torch.generative.layers import kv_cache as kv_utils
from litert_torch.generative.layers import model_config as cfg
from litert_torch.generative.utilities.export_config import ExportConfig
from torch import nn

from edgeverify.hf.checkpoints import seeded
from edgeverify.hf.config import meta_model, reference_config
from edgeverify_models import load
from edgeverify_models.port import LoadError, Port, build_model, map_state
from edgeverify_models.run import KV_LAYOUTS

# A prompt in two chunks, then single tokens: 60 positions and 5 more.
STEPS = (24, 36, 1, 1, 1, 1, 1)
CACHE_ROWS = 70
# Relative L2 error of the worst row. Right ports measure 4e-7 to 3e-6 here on all families.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Family:
    """A port, a config of it, and seeded weights for that config."""

    port: Port
    config: Mapping[str, Any]

    def but(self, **changes: Any) -> Family:
        """The same family with other config values; ``...`` takes a key out."""
        changed = {**self.config, **changes}
        return replace(
            self, config={key: value for key, value in changed.items() if value is not ...}
        )

    def mapped(self) -> cfg.ModelConfig:
        return self.port.model_config(self.config)

    def meta(self) -> nn.Module:
        """transformers' model, without memory."""
        return meta_model(self.config)

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        return seeded.draw_tensors(seeded.plan_draws(self.meta()), seed=11)

    @cached_property
    def tokens(self) -> torch.Tensor:
        """(1, T) ids; 0 is among them, which upstream's embedding takes for padding."""
        generator = torch.Generator().manual_seed(5)
        vocab_size = self.config["vocab_size"]
        tokens = torch.randint(0, vocab_size, (1, sum(STEPS)), generator=generator)
        tokens[0, 3] = 0
        return tokens

    def hf_model(self) -> nn.Module:
        """transformers' model in float32 with ``state``, eager attention."""
        from transformers import AutoModelForCausalLM

        config = reference_config(self.config)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        outcome = model.load_state_dict(self.state, strict=False)
        assert not outcome.unexpected_keys
        assert set(outcome.missing_keys) <= {"lm_head.weight"}  # when it is tied
        return model.eval()

    @cached_property
    def hf_logits(self) -> torch.Tensor:
        """(1, T, V), the whole conversation at once."""
        with torch.no_grad():
            return self.hf_model()(self.tokens, use_cache=False).logits

    def build(self, mask_cache_size: int = CACHE_ROWS) -> nn.Module:
        return build_model(self.port, self.config, self.state, mask_cache_size=mask_cache_size)

    def run(
        self,
        model: nn.Module,
        *,
        layout: str = "default",
        cache_rows: int = CACHE_ROWS,
        masks: Callable[[torch.Tensor], Any] | None = None,
        steps: Sequence[int] = STEPS,
    ) -> torch.Tensor:
        """The port's logits (1, T, V), step by step; ``masks`` makes a mask from positions."""
        cache = kv_utils.KVCache.from_model_config(
            cache_rows, model.config, kv_layout=KV_LAYOUTS[layout]
        )
        logits, start = [], 0
        for length in steps:
            positions = torch.arange(start, start + length, dtype=torch.int)
            chunk = self.tokens[:, start : start + length].int()
            mask = None if masks is None else masks(positions)
            output = model(chunk, positions, cache, mask=mask)
            cache = output["kv_cache"]
            logits.append(output["logits"])
            start += length
        return torch.cat(logits, dim=1)

    def error(self, logits: torch.Tensor) -> float:
        """Relative L2 distance of the worst row from transformers' logits."""
        rows = logits.shape[1]
        want = self.hf_logits[:, :rows]
        return float(((logits - want).norm(dim=-1) / want.norm(dim=-1)).max())

    def assert_same(self, **choices: Any) -> None:
        """Builds the port, runs it and compares it with transformers."""
        assert self.error(self.run(self.build(), **choices)) < TOLERANCE

    def assert_published_shapes(self, parameters: int) -> None:
        """transformers' model of this size maps, tensor by tensor, onto the port's.

        Args:
            parameters: as published, a tied head counted once.
        """
        model = self.meta()
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
        mapped, _ = map_state(self.port, self.mapped(), model.state_dict())
        with torch.device("meta"):
            port = self.port.model_class(self.mapped(), mask_cache_size=0)
        wanted = {name: tensor.shape for name, tensor in port.state_dict().items()}
        assert {name: tensor.shape for name, tensor in mapped.items()} == wanted


@pytest.fixture
def family() -> Callable[..., Family]:
    """``family(name, size="tiny")``."""

    def get(name: str, size: str = "tiny") -> Family:
        port = load(name)
        return Family(port, port.hf_configs[size])

    return get


@pytest.fixture
def check_strict_loading() -> Callable[[Family], None]:
    """Loading refuses whatever does not map one to one."""

    def check(family: Family) -> None:
        def refusal(state: Mapping[str, torch.Tensor]) -> str:
            with pytest.raises(LoadError) as error:
                build_model(family.port, family.config, state, mask_cache_size=0)
            return str(error.value)

        state = family.state
        for name, tensor in state.items():
            without = refusal({key: value for key, value in state.items() if key != name})
            # A norm's bias is optional for the loader, so the model is the one to miss it.
            assert repr(name) in without or "sets no value for" in without
            assert "in the checkpoint and" in refusal({**state, name: tensor[:-1].clone()})
        assert "'model.layers.9.extra.weight'" in refusal(
            {**state, "model.layers.9.extra.weight": torch.zeros(1)}
        )
        mapped, _ = map_state(family.port, family.mapped(), state)
        tied = family.mapped().lm_head_share_weight_with_embedding
        assert (mapped["lm_head.weight"] is mapped["tok_embedding.weight"]) is bool(tied)

    return check


@pytest.fixture
def prefill_without_logits() -> Callable[[Family], None]:
    """Prefill gives no logits where the export config says so; decode does."""

    def check(family: Family) -> None:
        model = family.build()
        cache = kv_utils.KVCache.from_model_config(CACHE_ROWS, model.config)
        for export, lengths in (
            (ExportConfig(output_logits_on_prefill=False), {4: False, 1: True}),
            (ExportConfig(output_logits_on_prefill=True), {4: True, 1: True}),
        ):
            for length, expected in lengths.items():
                output = model(
                    family.tokens[:, :length].int(),
                    torch.arange(length, dtype=torch.int),
                    cache,
                    export_config=export,
                )
                assert ("logits" in output) is expected
                assert "kv_cache" in output

    return check
