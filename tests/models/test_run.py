"""``define_and_run``: a model without any checkpoint."""

from __future__ import annotations

import pytest
import torch

from edgeverify_models import load
from edgeverify_models.run import build_random_model, define_and_run


def test_equal_seeds_give_equal_runs():
    port = load("smollm2")
    first, again, other = (define_and_run(port, seed=seed) for seed in (3, 3, 4))
    for left, right in zip(first.steps, again.steps, strict=True):
        assert torch.equal(left.logits, right.logits)
    assert not torch.equal(first.steps[0].logits, other.steps[0].logits)


@pytest.mark.parametrize("name", ["gemma2", "phi2", "openelm"])
def test_layouts_agree(name):
    port = load(name)
    default, transposed = (
        define_and_run(port, kv_layout=layout) for layout in ("default", "transposed")
    )
    assert default.kv_shapes != transposed.kv_shapes
    for left, right in zip(default.steps, transposed.steps, strict=True):
        torch.testing.assert_close(left.logits, right.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma1", "gemma2", "tinyllama", "phi2", "openelm"])
def test_every_parameter_is_drawn(name):
    """No parameter is left uninitialised, constant, or neutral."""
    port = load(name)
    model = build_random_model(port, port.hf_configs["tiny"], mask_cache_size=0)
    for parameter in model.parameters():
        assert torch.isfinite(parameter).all()
        assert parameter.unique().numel() > parameter.numel() // 2
        assert 0.01 < parameter.std() < 2
    tied = model.config.lm_head_share_weight_with_embedding
    same = model.lm_head.weight.data_ptr() == model.tok_embedding.weight.data_ptr()
    assert same is bool(tied)


def test_a_tied_head_counts_once():
    assert define_and_run(load("smollm")).parameters == 470_208
