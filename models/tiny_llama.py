"""TinyLlama 1.1B (TinyLlama/TinyLlama-1.1B-Chat-v1.0): the Llama architecture, unchanged.

Grouped-query attention, SwiGLU, RMSNorm before attention and feed-forward, rotary positions, no
biases, an untied LM head. The block is the Generative API's ``TransformerBlock``, unchanged.

Config: https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0/blob/main/config.json
"""

from __future__ import annotations

from litert_torch.generative.layers import model_config as cfg
from litert_torch.generative.utilities.loader import ModelLoader
from litert_torch.generative.utilities.model_builder import DecoderOnlyModel

from edgeverify_models import hf_config
from edgeverify_models.port import HFConfig, Port

HF_CONFIGS: dict[str, HFConfig] = {
    "1.1b": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 5632,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 22,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 32000,
    },
    # No value here is a default of any library, and head_dim is not hidden_size / heads (24).
    "tiny": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 40,
        "hidden_act": "silu",
        "hidden_size": 96,
        "intermediate_size": 160,
        "max_position_embeddings": 384,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 5e-3,
        "rope_scaling": None,
        "rope_theta": 3700.0,
        "tie_word_embeddings": False,
        "vocab_size": 331,
    },
}

TENSOR_NAMES = ModelLoader.TensorNames(
    attn_query_proj="model.layers.{}.self_attn.q_proj",
    attn_key_proj="model.layers.{}.self_attn.k_proj",
    attn_value_proj="model.layers.{}.self_attn.v_proj",
    attn_output_proj="model.layers.{}.self_attn.o_proj",
    ff_gate_proj="model.layers.{}.mlp.gate_proj",
    ff_up_proj="model.layers.{}.mlp.up_proj",
    ff_down_proj="model.layers.{}.mlp.down_proj",
    pre_attn_norm="model.layers.{}.input_layernorm",
    post_attn_norm="model.layers.{}.post_attention_layernorm",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    lm_head="lm_head",
)


def model_config(hf: HFConfig) -> cfg.ModelConfig:
    """Maps the config of any Llama-type model; missing keys take ``LlamaConfig``'s defaults.

    Raises:
        ValueError: a key is missing, or the Generative API cannot express its value.
    """
    hf_config.check_model_type(hf, "llama")
    heads = hf_config.heads(hf)
    rope = hf_config.rope(hf, heads.dim)
    attention_bias = bool(hf_config.get(hf, "attention_bias", False))
    norm = cfg.NormalizationConfig(
        type=cfg.NormalizationType.RMS_NORM, epsilon=hf_config.get(hf, "rms_norm_eps", 1e-6)
    )
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
            activation=hf_config.activation(hf_config.get(hf, "hidden_act", "silu"), "hidden_act"),
            intermediate_size=hf_config.require(hf, "intermediate_size"),
            use_bias=bool(hf_config.get(hf, "mlp_bias", False)),
        ),
        pre_attention_norm_config=norm,
        post_attention_norm_config=norm,
    )
    return cfg.ModelConfig(
        vocab_size=hf_config.require(hf, "vocab_size"),
        num_layers=hf_config.require(hf, "num_hidden_layers"),
        max_seq_len=hf_config.get(hf, "max_position_embeddings", 2048),
        embedding_dim=hf_config.require(hf, "hidden_size"),
        block_configs=block,
        final_norm_config=norm,
        lm_head_share_weight_with_embedding=bool(hf_config.get(hf, "tie_word_embeddings", False)),
    )


class TinyLlama(DecoderOnlyModel):
    """The Generative API's decoder with its own class name, for the ``.tflite``'s tensor names."""


TINYLLAMA = Port(
    name="tinyllama",
    hf_configs=HF_CONFIGS,
    default_size="tiny",
    hub_ids={"1.1b": "TinyLlama/TinyLlama-1.1B-Chat-v1.0"},
    model_config=model_config,
    model_class=TinyLlama,
    tensor_names=TENSOR_NAMES,
)
