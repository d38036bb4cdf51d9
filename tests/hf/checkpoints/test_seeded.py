"""Seeded weights: what they are, and what they do not depend on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import edgeverify_models as models
from edgeverify.core.errors import UsageError
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.hf.checkpoints.seeded import Draw, draw_tensor, draw_tensors
from edgeverify.hf.config import meta_model, reference_config
from edgeverify_models.port import Port

ALL_PORTS = list(models.CATALOGUE)


def test_same_seed_same_bits_another_seed_other_bits(port: Port) -> None:
    first = open_checkpoint(None, port, size="tiny", seed=3)
    again = open_checkpoint(None, port, size="tiny", seed=3)
    other = open_checkpoint(None, port, size="tiny", seed=4)
    assert first.identity == again.identity != other.identity
    a, b, c, d = first.tensors(), again.tensors(), other.tensors(), first.tensors()
    assert list(a) == list(b) == list(c)
    for name in a:
        assert torch.equal(a[name], b[name]), name
        assert torch.equal(a[name], d[name]), name
        assert not torch.equal(a[name], c[name]), name


def test_a_tensor_depends_on_no_other_and_on_no_order() -> None:
    draws = {f"t{i}": Draw((5, 7), 1.0) for i in range(4)}
    backwards = dict(reversed(draws.items()))
    drawn = draw_tensors(draws, 1)
    for name, tensor in draw_tensors(backwards, 1).items():
        assert torch.equal(tensor, drawn[name])
        assert torch.equal(tensor, draw_tensor(name, draws[name], 1))
    values = torch.stack(list(drawn.values())).flatten()
    assert len(values.unique()) == len(values)


def test_values_are_pinned() -> None:
    """A change of the numbers makes every golden wrong: it needs a new scheme name."""
    drawn = draw_tensor("w", Draw((2, 2), 0.5), 0)
    norm = draw_tensor("n", Draw((4,), 0.2, norm=True), 0)
    assert drawn.dtype == torch.float32
    assert drawn.flatten().tolist() == pytest.approx(PINNED_MATRIX, rel=1e-7)
    assert norm.tolist() == pytest.approx(PINNED_NORM, rel=1e-7)


PINNED_MATRIX = [-0.7126131057739258, -0.16783791780471802, -0.0823303684592247, 0.884232223033905]
PINNED_NORM = [0.9985413551330566, 1.1384413242340088, 0.979476273059845, -1.1514129638671875]


@pytest.mark.parametrize("name", ALL_PORTS)
def test_every_tiny_size_has_the_models_tensors_and_none_neutral(name: str) -> None:
    port = models.load(name)
    tensors = open_checkpoint(None, port, size="tiny").tensors()
    reference = meta_model(port.hf_configs["tiny"])
    assert {k: t.shape for k, t in tensors.items()} == {
        k: p.shape for k, p in reference.named_parameters()
    }
    adds_one = name.startswith("gemma")
    for key, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        if key.endswith("bias"):
            assert 0.05 < tensor.std() < 0.15, key
        elif tensor.ndim == 1:
            scale = tensor + 1 if adds_one else tensor
            assert 0.9 < scale.abs().mean() < 1.1, key
            assert (scale < 0).any(), key
            assert (scale > 0).any(), key
        else:
            spread = tensor.std() * tensor.shape[1] ** 0.5
            assert 0.9 < spread < 1.1, key


def test_a_tied_head_is_not_listed(port: Port, tied_port: Port) -> None:
    assert "lm_head.weight" in open_checkpoint(None, port, size="tiny").tensors()
    assert "lm_head.weight" not in open_checkpoint(None, tied_port, size="tiny").tensors()


@pytest.mark.parametrize("name", ["gemma1", "gemma2", "smollm"])
def test_a_tied_head_does_not_echo_its_input(name: str) -> None:
    port = models.load(name)
    checkpoint = open_checkpoint(None, port, size="tiny")
    logits = _logits(checkpoint.hf_config, checkpoint.tensors(), TOKENS)
    echoes = int((logits.argmax(-1) == TOKENS).sum())
    assert echoes <= 4  # of 48; positive norm weights give 48 (gemma1) and 29 (gemma2)
    assert 0.5 < logits.std() < 2


def test_gemma2s_softcaps_bite() -> None:
    port = models.load("gemma2")
    checkpoint = open_checkpoint(None, port, size="tiny")
    tensors = checkpoint.tensors()
    capped = dict(checkpoint.hf_config)
    clean = _logits(capped, tensors, TOKENS)
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        # A cap that does not bite could be doubled without a difference.
        other = _logits({**capped, cap: 2 * capped[cap]}, tensors, TOKENS)
        assert (other - clean).norm() > 1e-2 * clean.norm(), cap


def test_unknown_size_is_told_with_the_ports_sizes(port: Port) -> None:
    with pytest.raises(UsageError) as caught:
        open_checkpoint(None, port, size="7b")
    assert str(caught.value) == (
        "--size: port 'tinyllama' has no size '7b'; expected one of 1.1b, tiny"
    )


def test_default_size_and_config_are_the_ports(port: Port) -> None:
    port = dataclasses.replace(port, default_size="tiny")
    checkpoint = open_checkpoint(None, port)
    assert checkpoint.size == "tiny"
    assert checkpoint.hf_config == port.hf_configs["tiny"]
    assert checkpoint.tokenizer_dir is None
    assert checkpoint.description == "seeded random weights, seed 0"


TOKENS = torch.randint(0, 200, (48,), generator=torch.Generator().manual_seed(0))


def _logits(config: dict, tensors: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    reference = reference_config(config)
    reference._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(reference).eval()
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    with torch.no_grad():
        return model(tokens[None]).logits[0]
