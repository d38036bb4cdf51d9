"""Phi-2 (microsoft/phi-2).

Unusual: attention and feed-forward run in parallel on one LayerNorm's output and are added to the
residual together; every linear layer has a bias, including the LM head; only the first 0.4 of each
head's elements are rotated. The Generative API's ``TransformerBlock`` does all of this.

Config: https://huggingface.co/microsoft/phi-2/blob/main/config.json
"""

from __future__ import annotations

from litert_torch.generative.layers import model_config as cfg
from litert_torch.generative.utilities.loader import ModelLoader
from litert_torch.generative.utilities.model_builder import DecoderOnlyModel

from edgeverify_models import hf_config
from edgeverify_models.port import HFConfig, Port

_COMMON: HFConfig = {
    "architectures": ["PhiForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 50256,
    "embd_pdrop": 0.0,
    "eos_token_id": 50256,
    "hidden_act": "gelu_new",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 10240,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "phi",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4,
    "qk_layernorm": False,
    "resid_pdrop": 0.1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 51200,
}
HF_CONFIGS: dict[str, HFConfig] = {
    "2.7b": _COMMON,
    # 0.45 of 24 elements truncates to 10 (it would round to 11). Two groups of two heads: the
    # architecture supports grouping, though Phi-2 does not use it.
    "tiny": {
        **_COMMON,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 96,
        "intermediate_size": 224,
        "layer_norm_eps": 8e-3,
        "max_position_embeddings": 272,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.45,
        "rope_theta": 4300.0,
        "vocab_size": 251,
    },
}

TENSOR_NAMES = ModelLoader.TensorNames(
    attn_query_proj="model.layers.{}.self_attn.q_proj",
    attn_key_proj="model.layers.{}.self_attn.k_proj",
    attn_value_proj="model.layers.{}.self_attn.v_proj",
    attn_output_proj="model.layers.{}.self_attn.dense",
    ff_up_proj="model.layers.{}.mlp.fc1",
    ff_down_proj="model.layers.{}.mlp.fc2",
    pre_attn_norm="model.layers.{}.input_layernorm",
    embedding="model.embed_tokens",
    final_norm="model.final_layernorm",
    lm_head="lm_head",
)


def model_config(hf: HFConfig) -> cfg.ModelConfig:
    """Maps a ``PhiConfig``; missing keys take that class's defaults (0.5 of each head is rotated).

    Raises:
        ValueError: a key is missing, or the Generative API cannot express its value.
    """
    hf_config.check_model_type(hf, "phi")
    hf_config.expect(hf, "qk_layernorm", False)
    heads = hf_config.heads(hf)
    rope = hf_config.rope(hf, heads.dim, partial=True, default_share=0.5)
    norm = cfg.NormalizationConfig(
        type=cfg.NormalizationType.LAYER_NORM, epsilon=hf_config.get(hf, "layer_norm_eps", 1e-5)
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
            qkv_use_bias=True,
            output_proj_use_bias=True,
        ),
        ff_config=cfg.FeedForwardConfig(
            type=cfg.FeedForwardType.SEQUENTIAL,
            activation=hf_config.activation(
                hf_config.get(hf, "hidden_act", "gelu_new"), "hidden_act"
            ),
            intermediate_size=hf_config.require(hf, "intermediate_size"),
            use_bias=True,
        ),
        pre_attention_norm_config=norm,
        parallel_residual=True,
    )
    return cfg.ModelConfig(
        vocab_size=hf_config.require(hf, "vocab_size"),
        num_layers=hf_config.require(hf, "num_hidden_layers"),
        max_seq_len=hf_config.get(hf, "max_position_embeddings", 2048),
        embedding_dim=hf_config.require(hf, "hidden_size"),
        block_configs=block,
        final_norm_config=norm,
        lm_head_use_bias=True,
        lm_head_share_weight_with_embedding=bool(hf_config.get(hf, "tie_word_embeddings", False)),
    )


class Phi2(DecoderOnlyModel):
    """The Generative API's decoder with its own class name, for the ``.tflite``'s tensor names."""


PHI2 = Port(
    name="phi2",
    hf_configs=HF_CONFIGS,
    default_size="tiny",
    hub_ids={"2.7b": "microsoft/phi-2"},
    model_config=model_config,
    model_class=Phi2,
    tensor_names=TENSOR_NAMES,
)
