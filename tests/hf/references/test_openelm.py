"""The project's own OpenELM: as transformers sees it, and against mlx-lm's by other authors."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from edgeverify.hf import openelm
from edgeverify.hf.config import config_differences, reference_config
from edgeverify.hf.openelm_config import OpenELMConfig

needs_mlx = pytest.mark.skipif(
    importlib.util.find_spec("mlx_lm") is None,
    reason="mlx-lm is not installed: pip install 'edgeverify[oracle]'",
)
# As published, but small: four layers of different widths, an eps and a base of their own.
CONFIG = {
    "activation_fn_name": "swish",
    "ffn_dim_divisor": 32,
    "ffn_multipliers": [0.49, 1.17, 2.1, 3.3],
    "ffn_with_glu": True,
    "head_dim": 24,
    "max_context_length": 336,
    "model_dim": 96,
    "model_type": "openelm",
    "normalization_layer_name": "rms_norm",
    "normalize_qk_projections": True,
    "num_gqa_groups": 4,
    "num_kv_heads": [1, 2, 3, 3],
    "num_query_heads": [4, 8, 12, 12],
    "num_transformer_layers": 4,
    "qkv_multipliers": [1.0, 3.0],
    "rms_norm_eps": 9e-3,
    "rope_freq_constant": 2900,
    "share_input_output_layers": True,
    "vocab_size": 347,
}


@pytest.mark.oracle
@needs_mlx
@pytest.mark.parametrize("cached", [False, True], ids=["whole", "cached"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"share_input_output_layers": False},
        {"normalize_qk_projections": False},
        {"rms_norm_eps": ...},
        {"rope_freq_constant": ...},
    ],
    ids=str,
)
def test_same_logits_as_mlx_lm(checkpoint, worst_row, changes, cached):
    made = checkpoint({**CONFIG, **changes})
    assert worst_row(made.transformers_logits(), made.mlx_logits(cached=cached)) < 1e-5


@pytest.mark.oracle
@needs_mlx
@pytest.mark.parametrize(
    ("layers", "width", "head_dim"),
    [(16, 1280, 64), (20, 1536, 64), (28, 2048, 64), (36, 3072, 128)],
    ids=["270m", "450m", "1.1b", "3b"],
)
def test_same_shapes_as_mlx_lm(layers, width, head_dim):
    """mlx builds lazily, and the reference is on the meta device: no memory."""
    import mlx.utils
    from mlx_lm.models import openelm as mlx_openelm

    config = OpenELMConfig(
        num_transformer_layers=layers,
        model_dim=width,
        head_dim=head_dim,
        num_gqa_groups=4,
        qkv_multipliers=[0.5, 1.0],
        ffn_multipliers=[0.5, 4.0],
        normalize_qk_projections=True,
        share_input_output_layers=True,
    )
    theirs = mlx_openelm.Model(mlx_openelm.ModelArgs.from_dict(config.to_dict()))
    shapes = {name: tuple(a.shape) for name, a in mlx.utils.tree_flatten(theirs.parameters())}
    with torch.device("meta"):
        ours = openelm.OpenELMForCausalLM(config)
    assert {name: tuple(p.shape) for name, p in ours.named_parameters()} == shapes


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_steps_with_a_cache_equal_one_call(checkpoint, attention):
    made = checkpoint(CONFIG)
    model = made.transformers_model()
    model.set_attn_implementation(attention)
    tokens = torch.from_numpy(made.tokens)
    with torch.no_grad():
        whole = model(tokens, use_cache=False)
        assert whole.past_key_values is None
        first = model(tokens[:, :33])
        second = model(tokens[:, 33:], past_key_values=first.past_key_values)
    stepped = torch.cat((first.logits, second.logits), dim=1)
    torch.testing.assert_close(stepped, whole.logits, rtol=1e-4, atol=1e-5)


def test_generate_is_the_argmax_of_the_logits(checkpoint):
    made = checkpoint(CONFIG)
    model = made.transformers_model()
    prompt = torch.from_numpy(made.tokens)[:, :9]
    generated = model.generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert generated.shape == (1, 14)
    with torch.no_grad():
        logits = model(generated, use_cache=False).logits
    assert torch.equal(generated[0, 9:], logits[0, 8:13].argmax(dim=-1))


def test_hidden_states_and_last_logits(checkpoint):
    made = checkpoint(CONFIG)
    model = made.transformers_model()
    tokens = torch.from_numpy(made.tokens)
    with torch.no_grad():
        output = model(tokens, output_hidden_states=True)
        last = model(tokens, logits_to_keep=1)
    assert len(output.hidden_states) == 5
    assert torch.equal(output.hidden_states[0], model.transformer.token_embeddings(tokens))
    torch.testing.assert_close(last.logits, output.logits[:, -1:], rtol=1e-5, atol=1e-6)


def test_rope_is_filled_after_loading(checkpoint):
    """transformers builds on meta and never loads what is not in the checkpoint."""
    made = checkpoint(CONFIG)
    rotary = made.transformers_model().transformer.rotary_emb
    expected = torch.tensor([2900.0 ** (-2 * i / 24) for i in range(12)])
    torch.testing.assert_close(rotary.inv_freq, expected)
    assert "transformer.rotary_emb.inv_freq" not in made.transformers_model().state_dict()


def test_round_trip(checkpoint, tmp_path):
    made = checkpoint(CONFIG)
    model = made.transformers_model()
    model.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert not config_differences(CONFIG, written)
    again = type(model).from_pretrained(tmp_path / "saved")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_tied_head():
    """One parameter of two names; without the tie, two."""
    for tied in (True, False):
        with torch.device("meta"):
            config = OpenELMConfig(**{**CONFIG, "share_input_output_layers": tied})
            model = openelm.OpenELMForCausalLM(config)
        assert (model.lm_head.weight is model.transformer.token_embeddings.weight) is tied
        assert ("lm_head.weight" in dict(model.named_parameters())) is not tied


def test_register_is_idempotent():
    openelm.register()
    openelm.register()
    assert type(reference_config(CONFIG)) is OpenELMConfig


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_query_heads": [4, 8, 12]}, "expected 4 of each"),
        ({"num_kv_heads": [3, 2, 3, 3]}, "expected each to divide"),
        ({"normalization_layer_name": "layer_norm"}, "expected 'rms_norm'"),
        ({"num_query_heads": None, "qkv_multipliers": None}, "expected one"),
    ],
)
def test_config_values_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        OpenELMConfig(**{**CONFIG, **changes})
