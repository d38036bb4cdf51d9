"""SmolLM and SmolLM2 (HuggingFaceTB): the Llama architecture with the LM head tied.

The two generations differ only in the base of the rotary positions and in the context length.
The 135M and 360M sizes group three query heads per key/value head; 1.7B does not group.

Configs: https://huggingface.co/HuggingFaceTB/SmolLM-135M/blob/main/config.json and its siblings.
"""

from __future__ import annotations

from litert_torch.generative.utilities.model_builder import DecoderOnlyModel

from edgeverify_models.port import HFConfig, Port
from edgeverify_models.tiny_llama import TENSOR_NAMES, model_config

_COMMON: HFConfig = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "mlp_bias": False,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 49152,
}
_GEOMETRY: dict[str, HFConfig] = {
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
    },
    "360m": {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_attention_heads": 15,
        "num_hidden_layers": 32,
        "num_key_value_heads": 5,
    },
    "1.7b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 24,
        "num_key_value_heads": 32,
    },
}
_SMOLLM: HFConfig = {"max_position_embeddings": 2048, "rope_theta": 10000.0}
_SMOLLM2: HFConfig = {"max_position_embeddings": 8192, "rope_theta": 100000}

HF_CONFIGS_SMOLLM: dict[str, HFConfig] = {
    **{size: {**_COMMON, **_SMOLLM, **geometry} for size, geometry in _GEOMETRY.items()},
    # Three groups of two heads; head_dim is not hidden_size / heads (16).
    "tiny": {
        **_COMMON,
        "head_dim": 48,
        "hidden_size": 96,
        "intermediate_size": 224,
        "max_position_embeddings": 320,
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 3,
        "rms_norm_eps": 7e-3,
        "rope_theta": 5300.0,
        "vocab_size": 283,
    },
}
HF_CONFIGS_SMOLLM2: dict[str, HFConfig] = {
    **{size: {**_COMMON, **_SMOLLM2, **geometry} for size, geometry in _GEOMETRY.items()},
    # Two groups of three heads.
    "tiny": {
        **_COMMON,
        "head_dim": 48,
        "hidden_size": 96,
        "intermediate_size": 192,
        "max_position_embeddings": 352,
        "num_attention_heads": 6,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 3e-3,
        "rope_theta": 23000.0,
        "vocab_size": 373,
    },
}
HF_CONFIGS_SMOLLM2["1.7b"] = {**HF_CONFIGS_SMOLLM2["1.7b"], "rope_theta": 130000}


class SmolLM(DecoderOnlyModel):
    """The Generative API's decoder with its own class name, for the ``.tflite``'s tensor names."""


class SmolLM2(DecoderOnlyModel):
    """Like ``SmolLM``, for SmolLM2."""


SMOLLM = Port(
    name="smollm",
    hf_configs=HF_CONFIGS_SMOLLM,
    default_size="tiny",
    hub_ids={
        "135m": "HuggingFaceTB/SmolLM-135M",
        "360m": "HuggingFaceTB/SmolLM-360M",
        "1.7b": "HuggingFaceTB/SmolLM-1.7B",
    },
    model_config=model_config,
    model_class=SmolLM,
    tensor_names=TENSOR_NAMES,
)

SMOLLM2 = Port(
    name="smollm2",
    hf_configs=HF_CONFIGS_SMOLLM2,
    default_size="tiny",
    hub_ids={
        "135m": "HuggingFaceTB/SmolLM2-135M",
        "360m": "HuggingFaceTB/SmolLM2-360M",
        "1.7b": "HuggingFaceTB/SmolLM2-1.7B",
    },
    model_config=model_config,
    model_class=SmolLM2,
    tensor_names=TENSOR_NAMES,
)
