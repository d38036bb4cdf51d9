"""The oracle of families with rotary tables of other kinds: float64, and no traces are left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgeverify.backends import reference
from edgeverify.backends.float64 import Float64Mode, exact_tables, is_rotary
from edgeverify.core.case import Case, plan_steps
from edgeverify.hf.checkpoints import seeded
from edgeverify.hf.config import meta_model
from tests.backends.test_float32 import FAMILY, SCALED

LONGROPE = {
    "rope_type": "longrope",
    "long_factor": [1.1 + 0.3 * pair for pair in range(8)],
    "short_factor": [1.0 + 0.01 * pair for pair in range(8)],
}
MODELS: dict[str, dict[str, Any]] = {
    **{kind: {"model_type": "llama", "rope_scaling": scaling} for kind, scaling in SCALED.items()},
    "dynamic": {"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "longrope, long": {
        "model_type": "phi3",
        "rope_scaling": LONGROPE,
        "original_max_position_embeddings": 32,
    },
    "longrope, short": {
        "model_type": "phi3",
        "rope_scaling": LONGROPE,
        "original_max_position_embeddings": 128,
    },
    "one per type of layer": {"model_type": "gemma3_text", "sliding_window": 8},
    "left out of layers": {"model_type": "smollm3"},
    "neighbours": {"model_type": "cohere"},
}


def built(changes: dict[str, Any]) -> Any:
    config = {"bos_token_id": 1, "eos_token_id": 2, **FAMILY, **changes}
    return reference.build(config, seeded.draw_tensors(seeded.plan_draws(meta_model(config)), 0))


@pytest.mark.parametrize("name", MODELS)
def test_the_oracle_is_what_float32_rounds(name: str) -> None:
    """Float32 frequencies in the oracle would make it as wrong as the reference is."""
    model = built(MODELS[name])
    tokens = np.random.default_rng(0).integers(0, 101, 60)
    case = Case("m", "t", "default", (60,), 64, plan_steps(tokens, (60,), ()))
    before = {n: b.clone() for n, b in model.named_buffers()}
    oracle = reference.run_oracle(model, case)
    after = dict(model.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    own, _ = reference.run(model, case)
    for key, truth in oracle.arrays.items():
        assert truth.dtype == np.float64
        error = np.linalg.norm(own[key] - truth) / np.linalg.norm(truth)
        assert error < 5e-6, key


@pytest.mark.parametrize("name", MODELS)
def test_tables_are_made_again_in_float64(name: str) -> None:
    for module in filter(is_rotary, built(MODELS[name]).modules()):
        tables = exact_tables(module)
        assert {n for n in module._buffers if n.endswith("inv_freq")} <= tables.keys()
        for found, table in tables.items():
            narrow = getattr(module, found)
            assert table.dtype == torch.float64
            torch.testing.assert_close(table.float(), narrow, rtol=1e-5, atol=0)
            if found.endswith("inv_freq"):
                assert not torch.equal(table, narrow.double()), "these are the rounded ones"


def test_python_numbers_become_float64_whatever_dtype_is_asked_for() -> None:
    with Float64Mode():
        for make in (torch.tensor, torch.as_tensor):
            found = make([0.1, 0.2], dtype=torch.float32)
            assert found.dtype == torch.float64
            assert found[0].item() == 0.1
        assert torch.tensor([1, 2]).dtype == torch.int64
