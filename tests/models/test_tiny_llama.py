"""TinyLlama, and what the Llama mapping takes over or refuses."""

from __future__ import annotations

import pytest
import torch

from edgeverify_models.port import LoadError, build_model


def test_published_size(family):
    family("tinyllama", "1.1b").assert_published_shapes(1_100_048_384)


@pytest.mark.parametrize("layout", ["default", "transposed"])
def test_same_logits_as_transformers(family, layout):
    family("tinyllama").assert_same(layout=layout)


def test_strict_loading(family, check_strict_loading):
    check_strict_loading(family("tinyllama"))


def test_an_untied_head_must_be_there(family):
    tiny = family("tinyllama")
    state = {name: value for name, value in tiny.state.items() if name != "lm_head.weight"}
    with pytest.raises(LoadError, match=r"tensor 'lm_head.weight' is not in the checkpoint"):
        build_model(tiny.port, tiny.config, state, mask_cache_size=0)


def test_prefill_logits(family, prefill_without_logits):
    prefill_without_logits(family("tinyllama"))


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"tie_word_embeddings": True},
        {"head_dim": ...},
        {"num_key_value_heads": None},
        {"num_key_value_heads": 1},
        {"hidden_act": "gelu"},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "relu"},
        {"rms_norm_eps": 1e-5},
        {"rms_norm_eps": ...},
        {"rope_theta": ...},
        {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 812.5}},
        {"rope_theta": 3.0, "rope_parameters": {"rope_type": "default", "rope_theta": 812.5}},
        {"partial_rotary_factor": 0.5},  # not read by this family, neither here nor there
    ],
    ids=str,
)
def test_config_values_are_taken_over(family, changes):
    """transformers' model of the changed config agrees, and the plain one does not."""
    tiny = family("tinyllama").but(**changes)
    tiny.assert_same()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_parameters.rope_type"),
        ({"hidden_act": "mish"}, "hidden_act='mish'"),
        ({"model_type": "qwen2"}, "model_type='qwen2' is another architecture"),
        ({"hidden_size": ...}, "key 'hidden_size' is missing"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"head_dim": 39}, "even number of rotated elements"),
    ],
)
def test_config_values_are_refused(family, changes, words):
    with pytest.raises(ValueError, match=r"HF config: .*expected") as error:
        family("tinyllama").but(**changes).mapped()
    assert words in str(error.value)


def test_eps_of_one_and_a_tenth_is_seen(family):
    """A port with eps 1.1e-5 under a config of 1e-5 is off by far more than rounding."""
    tiny = family("tinyllama").but(rms_norm_eps=1e-5)
    port = tiny.port.model_config(tiny.config)
    assert port.final_norm_config.epsilon == 1e-5
    model = tiny.build()
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1.1e-5
    assert tiny.error(tiny.run(model)) > 1e-5


def test_tied_config_with_an_untied_checkpoint(family):
    tiny = family("tinyllama").but(tie_word_embeddings=True)
    other = {
        **tiny.state,
        "lm_head.weight": torch.ones_like(tiny.state["model.embed_tokens.weight"]),
    }
    with pytest.raises(LoadError, match="the checkpoint's own head would be dropped"):
        build_model(tiny.port, tiny.config, other, mask_cache_size=0)
    same = {**tiny.state, "lm_head.weight": tiny.state["model.embed_tokens.weight"].clone()}
    build_model(tiny.port, tiny.config, same, mask_cache_size=0)
