"""Gemma 1 (google/gemma-2b, google/gemma-7b).

Unusual: embeddings are scaled by sqrt(hidden_size), RMSNorm multiplies by 1 + w, head_dim is set
separately from hidden_size, the feed-forward is gated by the tanh form of GELU, and the 2B model
has a single key/value head. The block is the Generative API's ``TransformerBlock``, unchanged.

Config: https://huggingface.co/google/gemma-2b/blob/main/config.json and that of gemma-7b.
"""

from __future__ import annotations

from dataclasses import replace

from litert_torch.generative.layers import model_config as cfg
from litert_torch.generative.utilities.model_builder import DecoderOnlyModel

from edgeverify_models import hf_config, tiny_llama
from edgeverify_models.port import HFConfig, Port

_COMMON: HFConfig = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 256000,
}
HF_CONFIGS: dict[str, HFConfig] = {
    "2b": {
        **_COMMON,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
    },
    "7b": {
        **_COMMON,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 16,
    },
    # Two groups of two heads, so a wrong order of groups is visible; the published sizes have
    # either one group or no grouping. head_dim is not hidden_size / heads (24).
    "tiny": {
        **_COMMON,
        "head_dim": 40,
        "hidden_size": 96,
        "intermediate_size": 224,
        "max_position_embeddings": 288,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 6e-3,
        "rope_theta": 7100.0,
        "vocab_size": 419,
    },
}

# The names in the Hub's safetensors, and those in the PyTorch checkpoints on Kaggle, which fuse q,
# k and v in blocks and have their own name for the embedding table.
TENSOR_NAMES = tiny_llama.TENSOR_NAMES
TENSOR_NAMES_KAGGLE = replace(
    tiny_llama.TENSOR_NAMES,
    attn_query_proj=None,
    attn_key_proj=None,
    attn_value_proj=None,
    attn_fused_qkv_proj="model.layers.{}.self_attn.qkv_proj",
    embedding="embedder",
)


def activation(hf: HFConfig) -> cfg.ActivationConfig:
    """Returns the gate's activation, as transformers 5 reads it.

    Only ``hidden_act`` counts. Its "gelu" is a legacy value of the official releases that means
    the tanh form (``GemmaConfig.__post_init__``); ``hidden_activation`` is not read.
    """
    name = hf_config.get(hf, "hidden_act", "gelu_pytorch_tanh")
    return hf_config.activation("gelu_pytorch_tanh" if name == "gelu" else name, "hidden_act")


def norm_config(hf: HFConfig) -> cfg.NormalizationConfig:
    """Returns Gemma's RMSNorm: the checkpoint has w, the factor is 1 + w."""
    return cfg.NormalizationConfig(
        type=cfg.NormalizationType.RMS_NORM,
        epsilon=hf_config.get(hf, "rms_norm_eps", 1e-6),
        zero_centered=True,
    )


def model_config(hf: HFConfig) -> cfg.ModelConfig:
    """Maps a ``GemmaConfig``; missing keys take that class's defaults.

    Raises:
        ValueError: a key is missing, or the Generative API cannot express its value.
    """
    hf_config.check_model_type(hf, "gemma")
    hf_config.expect(hf, "use_bidirectional_attention", False)
    heads = hf_config.heads(hf, default_kv=16, default_dim=256)
    rope = hf_config.rope(hf, heads.dim)
    attention_bias = bool(hf_config.get(hf, "attention_bias", False))
    norm = norm_config(hf)
    hidden_size = hf_config.require(hf, "hidden_size")
    block = cfg.TransformerBlockConfig(
        attn_config=cfg.AttentionConfig(
            num_heads=heads.query,
            head_dim=heads.dim,
            num_query_groups=heads.kv,
            rotary_base=rope.base,
            rotary_percentage=rope.share,
            qkv_transpose_before_split=True,  # q, k and v are blocks, as in HF's fused weight
            qkv_fused_interleaved=False,
            qkv_use_bias=attention_bias,
            output_proj_use_bias=attention_bias,
        ),
        ff_config=cfg.FeedForwardConfig(
            type=cfg.FeedForwardType.GATED,
            activation=activation(hf),
            intermediate_size=hf_config.require(hf, "intermediate_size"),
        ),
        pre_attention_norm_config=norm,
        post_attention_norm_config=norm,
    )
    return cfg.ModelConfig(
        vocab_size=hf_config.require(hf, "vocab_size"),
        num_layers=hf_config.require(hf, "num_hidden_layers"),
        max_seq_len=hf_config.get(hf, "max_position_embeddings", 8192),
        embedding_dim=hidden_size,
        embedding_scale=hidden_size**0.5,
        block_configs=block,
        final_norm_config=norm,
        lm_head_share_weight_with_embedding=bool(hf_config.get(hf, "tie_word_embeddings", True)),
    )


class Gemma1(DecoderOnlyModel):
    """The Generative API's decoder with its own class name, for the ``.tflite``'s tensor names."""


GEMMA1 = Port(
    name="gemma1",
    hf_configs=HF_CONFIGS,
    default_size="tiny",
    hub_ids={"2b": "google/gemma-2b", "7b": "google/gemma-7b"},
    model_config=model_config,
    model_class=Gemma1,
    tensor_names=(TENSOR_NAMES, TENSOR_NAMES_KAGGLE),
)
