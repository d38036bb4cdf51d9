"""Where RoPE is read: from the config, from Hugging Face's module, out of a port's block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgeverify_models as models
from edgeverify.core.errors import PortError
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.suites.invariants import rope
from edgeverify.suites.invariants.model import CannotCheckError, NotApplicableError, Violation
from edgeverify.suites.invariants.rotaries import ReauthoredRotation, ReferenceRotation, rotary_of
from edgeverify_models.port import Port
from tests import variants

LLAMA = models.load("tinyllama").hf_configs["tiny"]
AT = {"which": "q", "block": 0, "positions": (0, 1, 70, 383), "seed": 0}


def rotation_of(port: Port) -> ReauthoredRotation:
    checkpoint = open_checkpoint(None, port, size="tiny")
    return ReauthoredRotation(port, checkpoint.hf_config, checkpoint.tensors())


@pytest.mark.parametrize(
    ("name", "size", "head_dim", "turned", "base", "max_positions"),
    [
        ("gemma1", "tiny", 40, 40, 7100.0, 288),
        ("gemma2", "2b", 256, 256, 10000.0, 8192),
        ("phi2", "tiny", 24, 10, 4300.0, 272),
        ("phi2", "2.7b", 80, 32, 10000.0, 2048),
        ("openelm", "tiny", 32, 32, 2900.0, 336),
        ("smollm2", "1.7b", 64, 64, 130000.0, 8192),
    ],
)
def test_facts_of_the_config(
    name: str, size: str, head_dim: int, turned: int, base: float, max_positions: int
) -> None:
    rotary = rotary_of(models.load(name).hf_configs[size])
    assert (rotary.head_dim, rotary.turned, rotary.scaling) == (head_dim, turned, 1.0)
    assert rotary.max_positions == max_positions
    exact = [base ** (-2 * i / turned) for i in range(turned // 2)]
    assert rotary.frequencies == pytest.approx(exact, rel=1e-14)


YARN = {
    "rope_type": "yarn",
    "rope_theta": 3700.0,
    "factor": 4.0,
    "original_max_position_embeddings": 96,
}
LINEAR = {"rope_type": "linear", "rope_theta": 3700.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 3700.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 96,
}


@pytest.mark.parametrize("scaled", [LINEAR, LLAMA3, YARN], ids=lambda s: s["rope_type"])
def test_scaled_kinds_hold_the_contracts(scaled: dict[str, Any]) -> None:
    rotation = ReferenceRotation({**LLAMA, "rope_parameters": scaled, "rope_theta": None})
    plain = rotary_of(LLAMA)
    assert rotation.rotary.frequencies != plain.frequencies
    assert (rotation.rotary.scaling == 1) == (scaled is not YARN)
    for contract in (rope.norm, rope.origin, rope.reference):
        contract(rotation, **AT)
    rope.compose(rotation, which="k", block=0, pairs=((0, 5), (70, 313)), seed=0)
    rope.distance(rotation, block=0, pairs=((0, 5), (70, 3)), shift=300, seed=0)


def test_a_kind_that_changes_with_the_length_has_no_facts() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 3700.0, "factor": 4.0}
    with pytest.raises(CannotCheckError, match="'dynamic' changes with the conversation"):
        rotary_of({**LLAMA, "rope_parameters": dynamic, "rope_theta": None})


def test_a_model_without_rope_has_no_facts() -> None:
    gpt2 = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 11}
    with pytest.raises(NotApplicableError, match="no rotary module"):
        rotary_of(gpt2)


def test_reference_is_that_of_a_head_alone() -> None:
    """Heads do not mix: each alone gives what it gives among the others."""
    rotation = ReferenceRotation(LLAMA)
    vectors = np.random.default_rng(0).standard_normal((3, 4, 40), dtype=np.float32)
    positions = np.array([5, 0, 383])
    together = rotation.rotate("q", 0, vectors, positions)
    for head in range(4):
        alone = rotation.rotate("q", 0, vectors[:, head : head + 1], positions)
        assert np.array_equal(alone, together[:, head : head + 1])


def test_interleaved_heads_are_found() -> None:
    """Groups of (q, q, k, v) in the projection, as the Generative API's own default order."""
    port = models.load("tinyllama")

    def config(hf: Any) -> Any:
        right = port.model_config(hf)
        right.block_configs.attn_config.qkv_transpose_before_split = False
        return right

    rotation = rotation_of(replace(port, model_config=config))
    slots = rotation._slots
    assert slots[0, "q"] is not None
    assert slots[0, "q"].tolist() == [0, 1, 4, 5]
    assert slots[0, "k"] is not None
    assert slots[0, "k"].tolist() == [2, 6]
    for which in ("q", "k"):
        rope.reference(rotation, **{**AT, "which": which})


def test_norms_of_q_and_k_are_passed_by() -> None:
    """What enters RoPE is put in behind them, so their weights do not show."""
    rotation = rotation_of(models.load("openelm"))
    assert rotation._slots[0, "q"] is None
    rope.origin(rotation, **AT)


def changed(change: Callable[[nn.Module], None]) -> Port:
    return variants.with_model(models.load("tinyllama"), change)


def projection_past_its_hooks(model: nn.Module) -> None:
    projection = model.transformer_blocks[1].atten_func.qkv_projection
    projection.__class__ = type("Direct", (nn.Linear,), {"__call__": nn.Linear.forward})


def norm_of_another_name(model: nn.Module) -> None:
    model.transformer_blocks[2].atten_func.query_norm = lambda q: q / q.norm(dim=-1, keepdim=True)


def _over_all_heads(x: torch.Tensor) -> torch.Tensor:
    return x / x.flatten(2).norm(dim=-1)[..., None, None]


def norm_over_all_heads(model: nn.Module) -> None:
    model.transformer_blocks[2].atten_func.key_norm = _over_all_heads


def one_head_from_another(model: nn.Module) -> None:
    attention = model.transformer_blocks[0].atten_func
    attention.query_norm = lambda q: torch.cat((q[:, :, :1], q[:, :, :1], q[:, :, 2:]), dim=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (projection_past_its_hooks, "block 1 calls none: vectors are put in at qkv_projection"),
        (norm_of_another_name, "block 2: q is normed between qkv_projection and RoPE"),
        (norm_over_all_heads, "block 2: k is normed between qkv_projection and RoPE"),
        (one_head_from_another, r"block 0: the heads of q are no slices .*\[0, 0, 2, 3\]"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_block_that_cannot_be_read_is_not_passed(change: Any, words: str) -> None:
    with pytest.raises(CannotCheckError, match=words):
        rotation_of(changed(change))


def raises_at_the_last_position(model: nn.Module) -> None:
    forward = model.forward

    def checked(*args: Any, input_pos: torch.Tensor, **kwargs: Any) -> Any:
        if input_pos.max() == 383:
            raise IndexError("table of 383 rows")
        return forward(*args, input_pos=input_pos, **kwargs)

    model.forward = checked


def test_a_port_that_raises_is_told_with_the_positions() -> None:
    rotation = rotation_of(changed(raises_at_the_last_position))
    rope.reference(rotation, **{**AT, "positions": (382,)})
    with pytest.raises(PortError, match=r"RoPE at positions \[383\]: .*table of 383 rows"):
        rope.reference(rotation, **{**AT, "positions": (383,)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_behind_rope_is_a_violation(dtype: torch.dtype) -> None:
    def change(model: nn.Module) -> None:
        attention = model.transformer_blocks[0].atten_func
        attention.query_norm = lambda q: q.to(dtype)

    with pytest.raises(Violation, match=f"{str(dtype)[6:]}; right is"):
        rope.norm(rotation_of(changed(change)), **AT)
