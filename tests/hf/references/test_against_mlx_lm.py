"""transformers, the reference of all other families, against mlx-lm by other authors.

Both read the same files in float32. Where mlx-lm fixes what transformers reads from the config,
the config here has mlx-lm's value, and a comment says so.
"""

from __future__ import annotations

import importlib.util

import pytest

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(
        importlib.util.find_spec("mlx_lm") is None,
        reason="mlx-lm is not installed: pip install 'edgeverify[oracle]'",
    ),
]

_LLAMA = {
    "attention_bias": False,
    "head_dim": 40,
    "hidden_act": "silu",
    "hidden_size": 96,
    "intermediate_size": 160,
    "max_position_embeddings": 384,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 5e-3,
    "rope_theta": 3700.0,
    "tie_word_embeddings": False,
    "vocab_size": 331,
}
_GEMMA = {
    "head_dim": 40,
    "hidden_size": 96,
    "intermediate_size": 224,
    "max_position_embeddings": 288,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 6e-3,
    "rope_theta": 7100.0,
    "vocab_size": 419,
}
CONFIGS = {
    "llama": _LLAMA,
    "llama-tied": {**_LLAMA, "tie_word_embeddings": True},
    "llama-biases": {**_LLAMA, "attention_bias": True, "mlp_bias": True},
    # mlx-lm's gate is the exact GELU, whatever the config says. transformers reads "gelu" as the
    # tanh form here, so that "gelu_python" is its name for the exact one.
    "gemma": {**_GEMMA, "model_type": "gemma", "hidden_act": "gelu_python"},
    "gemma-one-kv-head": {
        **_GEMMA,
        "model_type": "gemma",
        "hidden_act": "gelu_python",
        "num_key_value_heads": 1,
    },
    # mlx-lm has no sliding window: the one here is longer than the conversation, and the window's
    # edge is held against a mask by rule in tests/models/test_gemma2.py.
    "gemma2": {
        **_GEMMA,
        "model_type": "gemma2",
        "attn_logit_softcapping": 2.3,
        "final_logit_softcapping": 1.7,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 23,
        "sliding_window": 256,
    },
    # mlx-lm fixes the tanh form of GELU and head_dim = hidden_size / heads; Phi has both.
    "phi": {
        "hidden_act": "gelu_new",
        "hidden_size": 96,
        "intermediate_size": 224,
        "layer_norm_eps": 8e-3,
        "max_position_embeddings": 272,
        "model_type": "phi",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.45,
        "rope_theta": 4300.0,
        "tie_word_embeddings": False,
        "vocab_size": 251,
    },
}


@pytest.mark.parametrize("cached", [False, True], ids=["whole", "cached"])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_logits(checkpoint, worst_row, name, cached):
    made = checkpoint(CONFIGS[name])
    assert worst_row(made.transformers_logits(), made.mlx_logits(cached=cached)) < 1e-5


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma", {"hidden_act": "gelu"}),
        ("gemma2", {"sliding_window": 13}),
        ("llama", {"rope_theta": 3750.0}),
        ("phi", {"partial_rotary_factor": 0.5}),
    ],
    ids=str,
)
def test_a_difference_is_seen(checkpoint, worst_row, name, changes):
    """The comparison can fail: mlx-lm on the plain config, transformers on another."""
    plain = checkpoint(CONFIGS[name])
    theirs = plain.mlx_logits(cached=False)
    other = checkpoint({**CONFIGS[name], **changes})
    assert worst_row(other.transformers_logits(), theirs) > 1e-4
