"""OpenELM (apple/OpenELM-270M, -450M, -1_1B, -3B).

Unusual: query heads, key/value heads and feed-forward width grow from layer to layer; q and k are
normed per head before the rotation; q, k and v are one matrix in blocks, gate and up are one matrix
(gate first); the LM head is tied. The Generative API's ``TransformerBlock`` does all of this, with
a config per layer. transformers has no implementation: Apple's is remote code, and the reference
here is ``edgeverify.hf.openelm``.

Configs: https://huggingface.co/apple/OpenELM-270M/blob/main/config.json and its siblings. Sizing
rule: arXiv 2404.14619, section 2, and Apple's ``configuration_openelm.py`` of the same repository.
Apple's code fixes RMSNorm's epsilon at 1e-6. The key ``rms_norm_eps`` is an addition (mlx-lm
reads it, too) that lets ``tiny`` have another epsilon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from litert_torch.generative.layers import model_config as cfg
from litert_torch.generative.utilities.loader import ModelLoader
from litert_torch.generative.utilities.model_builder import DecoderOnlyModel

from edgeverify_models import hf_config
from edgeverify_models.port import HFConfig, Port

_COMMON: HFConfig = {
    "activation_fn_name": "swish",
    "architectures": ["OpenELMForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "ffn_dim_divisor": 256,
    "ffn_with_glu": True,
    "head_dim": 64,
    "initializer_range": 0.02,
    "max_context_length": 2048,
    "model_type": "openelm",
    "normalization_layer_name": "rms_norm",
    "normalize_qk_projections": True,
    "num_gqa_groups": 4,
    "qkv_multipliers": [0.5, 1.0],
    "rope_freq_constant": 10000,
    "rope_max_length": 4096,
    "share_input_output_layers": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 32000,
}
# fmt: off
HF_CONFIGS: dict[str, HFConfig] = {
    "270m": {
        **_COMMON,
        "ffn_multipliers": [
            0.5, 0.73, 0.97, 1.2, 1.43, 1.67, 1.9, 2.13, 2.37, 2.6, 2.83, 3.07, 3.3, 3.53, 3.77,
            4.0,
        ],
        "model_dim": 1280,
        "num_kv_heads": [3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5],
        "num_query_heads": [12, 12, 12, 12, 12, 16, 16, 16, 16, 16, 16, 16, 20, 20, 20, 20],
        "num_transformer_layers": 16,
    },
    "450m": {
        **_COMMON,
        "ffn_multipliers": [
            0.5, 0.68, 0.87, 1.05, 1.24, 1.42, 1.61, 1.79, 1.97, 2.16, 2.34, 2.53, 2.71, 2.89,
            3.08, 3.26, 3.45, 3.63, 3.82, 4.0,
        ],
        "model_dim": 1536,
        "num_kv_heads": [3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 6, 6, 6, 6],
        "num_query_heads": [
            12, 12, 12, 16, 16, 16, 16, 16, 16, 16, 20, 20, 20, 20, 20, 20, 24, 24, 24, 24,
        ],
        "num_transformer_layers": 20,
    },
    "1.1b": {
        **_COMMON,
        "ffn_multipliers": [
            0.5, 0.63, 0.76, 0.89, 1.02, 1.15, 1.28, 1.41, 1.54, 1.67, 1.8, 1.93, 2.06, 2.19,
            2.31, 2.44, 2.57, 2.7, 2.83, 2.96, 3.09, 3.22, 3.35, 3.48, 3.61, 3.74, 3.87, 4.0,
        ],
        "model_dim": 2048,
        "num_kv_heads": [
            4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 8, 8, 8, 8,
        ],
        "num_query_heads": [
            16, 16, 16, 20, 20, 20, 20, 20, 20, 20, 24, 24, 24, 24, 24, 24, 24, 24, 28, 28, 28,
            28, 28, 28, 32, 32, 32, 32,
        ],
        "num_transformer_layers": 28,
    },
    "3b": {
        **_COMMON,
        "ffn_multipliers": [
            0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1,
            2.2, 2.3, 2.4, 2.5, 2.6, 2.7, 2.8, 2.9, 3.0, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7, 3.8,
            3.9, 4.0,
        ],
        "head_dim": 128,
        "model_dim": 3072,
        "num_kv_heads": [
            3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5,
            5, 5, 6, 6, 6, 6, 6, 6,
        ],
        "num_query_heads": [
            12, 12, 12, 12, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 20, 20, 20,
            20, 20, 20, 20, 20, 20, 20, 20, 20, 24, 24, 24, 24, 24, 24,
        ],
        "num_transformer_layers": 36,
    },
    # Follows the sizing rule, as the published sizes do. Layer 0's feed-forward (0.49 * 96 = 47.04)
    # takes the rule's 0.9 branch: 32 would be too little, so 64. q, k and v of layers 1 to 3 have
    # more than one group of four heads.
    "tiny": {
        **_COMMON,
        "ffn_dim_divisor": 32,
        "ffn_multipliers": [0.49, 1.17, 2.1, 3.3],
        "head_dim": 32,
        "max_context_length": 336,
        "model_dim": 96,
        "num_gqa_groups": 2,
        "num_kv_heads": [2, 3, 5, 6],
        "num_query_heads": [4, 6, 10, 12],
        "num_transformer_layers": 4,
        "qkv_multipliers": [1.3, 4.0],
        "rms_norm_eps": 9e-3,
        "rope_freq_constant": 2900,
        "rope_max_length": 672,
        "vocab_size": 347,
    },
}
# fmt: on

# `ff_up_proj` is proj_1: gate and up in one. Without normalize_qk_projections there are no norms.
TENSOR_NAMES = ModelLoader.TensorNames(
    attn_fused_qkv_proj="transformer.layers.{}.attn.qkv_proj",
    attn_query_norm="transformer.layers.{}.attn.q_norm",
    attn_key_norm="transformer.layers.{}.attn.k_norm",
    attn_output_proj="transformer.layers.{}.attn.out_proj",
    ff_up_proj="transformer.layers.{}.ffn.proj_1",
    ff_down_proj="transformer.layers.{}.ffn.proj_2",
    pre_attn_norm="transformer.layers.{}.attn_norm",
    post_attn_norm="transformer.layers.{}.ffn_norm",
    embedding="transformer.token_embeddings",
    final_norm="transformer.norm",
    lm_head="lm_head",
)
TENSOR_NAMES_WITHOUT_QK_NORM = replace(TENSOR_NAMES, attn_query_norm=None, attn_key_norm=None)


def make_divisible(value: float, divisor: int) -> int:
    """Returns the multiple of ``divisor`` nearest to ``value``; at least one, never 10 % below."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def per_layer(hf: HFConfig, key: str) -> list[float]:
    """Returns one multiplier per layer from a number, a first and a last one, or a full list.

    Values in between are linear and rounded to two decimals (``configuration_openelm.py``).

    Raises:
        ValueError: a list has another length than the layers.
    """
    layers = hf_config.require(hf, "num_transformer_layers")
    given = hf_config.require(hf, key)
    if not isinstance(given, Sequence):
        return [float(given)] * layers
    if len(given) == layers:
        return [float(value) for value in given]
    if len(given) != 2:
        raise hf_config.refuse(key, given, f"a number, two numbers or {layers} numbers")
    first, last = given
    return [round(first + (last - first) * i / (layers - 1), 2) for i in range(layers)]


def heads(hf: HFConfig) -> tuple[list[int], list[int]]:
    """Returns the query heads and key/value heads per layer.

    They are taken from ``num_query_heads`` and ``num_kv_heads``, or follow from
    ``qkv_multipliers`` and ``num_gqa_groups``.

    Raises:
        ValueError: the lists do not fit the layers or each other, or contradict the multipliers
            from which Apple's code computes them.
    """
    layers = hf_config.require(hf, "num_transformer_layers")
    query: Any = hf.get("num_query_heads")
    kv: Any = hf.get("num_kv_heads")
    if hf.get("qkv_multipliers") is not None:
        head_dim = hf_config.require(hf, "head_dim")
        per_kv = hf_config.get(hf, "num_gqa_groups", 1)
        # Without grouping, Apple's code rounds to two heads.
        divisor = head_dim * hf_config.get(hf, "num_gqa_groups", 2)
        width = hf_config.require(hf, "model_dim")
        multipliers = per_layer(hf, "qkv_multipliers")
        ruled = [make_divisible(width * value, divisor) // head_dim for value in multipliers]
        query = ruled if query is None else query
        kv = [count // per_kv for count in ruled] if kv is None else kv
        if list(query) != ruled:
            raise hf_config.refuse("num_query_heads", query, f"{ruled} by qkv_multipliers")
    for key, value in (("num_query_heads", query), ("num_kv_heads", kv)):
        if value is None or len(value) != layers:
            raise hf_config.refuse(key, value, f"a number for each of {layers} layers")
    if any(q % k for q, k in zip(query, kv, strict=True)):
        raise hf_config.refuse("num_kv_heads", kv, f"divisors of num_query_heads={query}")
    return list(query), list(kv)


def model_config(hf: HFConfig) -> cfg.ModelConfig:
    """Maps an OpenELM config; missing keys take the defaults of Apple's ``OpenELMConfig``.

    Raises:
        ValueError: a key is missing, or the Generative API cannot express its value.
    """
    hf_config.check_model_type(hf, "openelm")
    hf_config.expect(hf, "normalization_layer_name", "rms_norm")
    hf_config.expect(hf, "rope_scaling", None)
    activation = hf_config.get(hf, "activation_fn_name", "swish")
    kind = hf_config.activation(activation, "activation_fn_name")
    if hf_config.get(hf, "ffn_with_glu", True):
        if kind.type != cfg.ActivationType.SILU:  # the API's other gate, GE_GLU, gates with up
            raise hf_config.refuse("activation_fn_name", activation, "'swish' with ffn_with_glu")
        kind = cfg.ActivationConfig(cfg.ActivationType.SILU_GLU)
    norm = cfg.NormalizationConfig(
        type=cfg.NormalizationType.RMS_NORM, epsilon=hf_config.get(hf, "rms_norm_eps", 1e-6)
    )
    qk_norm = norm if hf_config.get(hf, "normalize_qk_projections", True) else None
    head_dim = hf_config.require(hf, "head_dim")
    width = hf_config.require(hf, "model_dim")
    if head_dim % 2:
        raise hf_config.refuse("head_dim", head_dim, "an even number, as all of it is rotated")

    def block(query: int, kv: int, ffn_multiplier: float) -> cfg.TransformerBlockConfig:
        return cfg.TransformerBlockConfig(
            attn_config=cfg.AttentionConfig(
                num_heads=query,
                head_dim=head_dim,
                num_query_groups=kv,
                rotary_base=float(hf_config.get(hf, "rope_freq_constant", 10000)),
                rotary_percentage=1.0,
                qkv_transpose_before_split=True,  # qkv_proj has q, k and v as blocks
                qkv_fused_interleaved=False,
                query_norm_config=qk_norm or cfg.NormalizationConfig(),
                key_norm_config=qk_norm or cfg.NormalizationConfig(),
            ),
            ff_config=cfg.FeedForwardConfig(
                type=cfg.FeedForwardType.SEQUENTIAL,
                activation=kind,
                intermediate_size=make_divisible(
                    ffn_multiplier * width, hf_config.get(hf, "ffn_dim_divisor", 256)
                ),
            ),
            pre_attention_norm_config=norm,
            post_attention_norm_config=norm,
        )

    blocks = [
        block(*layer) for layer in zip(*heads(hf), per_layer(hf, "ffn_multipliers"), strict=True)
    ]
    return cfg.ModelConfig(
        vocab_size=hf_config.require(hf, "vocab_size"),
        num_layers=len(blocks),
        max_seq_len=hf_config.get(hf, "max_context_length", 2048),
        embedding_dim=width,
        block_configs=blocks,
        final_norm_config=norm,
        lm_head_share_weight_with_embedding=bool(
            hf_config.get(hf, "share_input_output_layers", True)
        ),
    )


class OpenELM(DecoderOnlyModel):
    """The Generative API's decoder with its own class name, for the ``.tflite``'s tensor names."""


OPENELM = Port(
    name="openelm",
    hf_configs=HF_CONFIGS,
    default_size="tiny",
    hub_ids={
        "270m": "apple/OpenELM-270M",
        "450m": "apple/OpenELM-450M",
        "1.1b": "apple/OpenELM-1_1B",
        "3b": "apple/OpenELM-3B",
    },
    model_config=model_config,
    model_class=OpenELM,
    tensor_names=(TENSOR_NAMES, TENSOR_NAMES_WITHOUT_QK_NORM),
)
