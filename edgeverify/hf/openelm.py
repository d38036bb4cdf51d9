"""Implements OpenELM for transformers, which lacks it; Apple's own code is remote code.

It is written from the paper (arXiv 2404.14619: layer-wise scaling, grouped queries, normed q and k,
SwiGLU, RMSNorm before attention and feed-forward, no biases) and from Apple's published
``config.json`` and tensor names (https://huggingface.co/apple/OpenELM-270M). It shares no code with
the re-authored model that it is compared with, and is itself tested against mlx-lm's
implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

MODEL_TYPE = "openelm"


@strict
class OpenELMConfig(PreTrainedConfig):
    """Holds the keys of Apple's ``config.json``.

    ``ffn_multipliers`` and ``qkv_multipliers`` are one number for all layers, or two numbers for
    the first and the last layer, with the layers between interpolated linearly and rounded to two
    decimals. ``ffn_multipliers`` may also be one number per layer, as in the published configs.
    ``num_query_heads`` and ``num_kv_heads`` are counts per layer. If absent, they follow from
    ``qkv_multipliers`` and ``num_gqa_groups`` (query heads per key/value head). ``rms_norm_eps`` is
    not one of Apple's keys: Apple's code fixes it at 1e-6.

    Raises:
        ValueError: counts do not fit the layers or each other, or the norm is not RMSNorm.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {  # noqa: RUF012 - a class attribute of the base
        "hidden_size": "model_dim",
        "max_position_embeddings": "max_context_length",
        "num_hidden_layers": "num_transformer_layers",
    }

    vocab_size: int = 32000
    max_context_length: int = 2048
    num_transformer_layers: int = 12
    model_dim: int = 2048
    head_dim: int = 128
    qkv_multipliers: int | float | list | tuple | None = 1.0
    num_query_heads: list[int] | tuple[int, ...] | None = None
    num_kv_heads: list[int] | tuple[int, ...] | None = None
    num_gqa_groups: int | None = 1
    ffn_multipliers: int | float | list | tuple = 4.0
    ffn_with_glu: bool = True
    ffn_dim_divisor: int = 256
    activation_fn_name: str = "swish"
    normalization_layer_name: str = "rms_norm"
    normalize_qk_projections: bool = False
    share_input_output_layers: bool = False
    rope_freq_constant: int | float = 10000
    rope_max_length: int = 4096
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        layers = self.num_transformer_layers
        if self.normalization_layer_name != "rms_norm":
            raise ValueError(
                f"normalization_layer_name={self.normalization_layer_name!r}; expected 'rms_norm'"
            )
        multipliers = _spread(self.ffn_multipliers, layers)
        self.ffn_multipliers = multipliers
        if self.num_query_heads is None:
            if self.qkv_multipliers is None:
                raise ValueError("num_query_heads and qkv_multipliers are absent; expected one")
            step = self.head_dim * (self.num_gqa_groups or 2)
            self.num_query_heads = [
                _round_width(self.model_dim * factor, step) // self.head_dim
                for factor in _spread(self.qkv_multipliers, layers)
            ]
        if self.num_kv_heads is None:
            self.num_kv_heads = [n // (self.num_gqa_groups or 1) for n in self.num_query_heads]
        pairs = list(zip(self.num_query_heads, self.num_kv_heads, strict=False))
        if {len(self.num_query_heads), len(self.num_kv_heads), len(multipliers)} != {layers}:
            raise ValueError(
                f"{len(self.num_query_heads)} num_query_heads, {len(self.num_kv_heads)} "
                f"num_kv_heads, {len(multipliers)} ffn_multipliers; expected {layers} of each"
            )
        if any(query % kv for query, kv in pairs):
            raise ValueError(f"query and key/value heads {pairs}; expected each to divide")
        self.tie_word_embeddings = self.share_input_output_layers
        super().__post_init__(**kwargs)

    def ffn_width(self, layer_idx: int) -> int:
        """Returns the number of elements between the two feed-forward projections of a layer."""
        factor = _spread(self.ffn_multipliers, self.num_transformer_layers)[layer_idx]
        return _round_width(self.model_dim * factor, self.ffn_dim_divisor)


def _spread(value: float | Sequence[float], layers: int) -> list[float]:
    if not isinstance(value, Sequence):
        return [value] * layers
    if len(value) == 2 != layers:
        slope = (value[1] - value[0]) / (layers - 1)
        return [round(value[0] + slope * layer, 2) for layer in range(layers)]
    return list(value)


def _round_width(width: float, step: int) -> int:
    """Rounds to the nearest multiple of ``step``, but to at least nine tenths of ``width``."""
    steps = max(1, int((width + step / 2) / step))
    if steps * step < 0.9 * width:
        steps += 1
    return steps * step


class OpenELMRMSNorm(nn.Module):
    """Computes x / rms(x) * weight over the last axis, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.to(torch.float32)
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (wide * scale).to(hidden_states.dtype) * self.weight


class OpenELMRotaryEmbedding(nn.Module):
    """Computes cos and sin per position, (B, T, head_dim); both halves have the same angles."""

    rope_type = "default"  # PreTrainedModel fills the buffers again after loading by these names
    attention_scaling = 1.0

    def __init__(self, config: OpenELMConfig) -> None:
        super().__init__()
        self.config = config
        inv_freq, _ = self.compute_default_rope_parameters(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: OpenELMConfig, **kwargs: Any
    ) -> tuple[torch.Tensor, float]:
        """Returns the angle per position of each pair of elements, (head_dim / 2,)."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        return 1.0 / (config.rope_freq_constant**exponents), 1.0

    @torch.no_grad()
    def forward(
        self, hidden_states: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inv_freq: torch.Tensor = self.inv_freq  # type: ignore[assignment]
        angles = position_ids[:, :, None].to(torch.float32) * inv_freq.to(torch.float32)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(hidden_states.dtype), angles.sin().to(hidden_states.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates each pair of elements i and i + H / 2 of (B, N, T, H)."""
    first, second = x.chunk(2, dim=-1)
    swapped = torch.cat((-second, first), dim=-1)
    return x * cos[:, None] + swapped * sin[:, None]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes softmax(q kᵀ * scaling + mask) v.

    Args:
        module: the attention module; its ``num_key_value_groups`` is the number of query heads per
            key/value head.
        query: (B, N, T, H).
        key: (B, N / groups, S, H); each head serves as many consecutive query heads.
        value: as key.
        attention_mask: (B, 1, T, S), added to the scores, or None.
        scaling: the factor of the scores.
        dropout: the dropout of the weights, in training.

    Returns:
        The output (B, T, N, H) and the weights (B, N, T, S).
    """
    groups = int(module.num_key_value_groups)  # type: ignore[arg-type]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class OpenELMAttention(nn.Module):
    """Grouped-query attention; ``qkv_proj`` computes all q heads, then all k, then all v heads."""

    def __init__(self, config: OpenELMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        assert config.num_query_heads is not None  # filled in by the config
        assert config.num_kv_heads is not None
        self.num_heads = config.num_query_heads[layer_idx]
        self.num_key_value_heads = config.num_kv_heads[layer_idx]
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        all_heads = self.num_heads + 2 * self.num_key_value_heads
        self.qkv_proj = nn.Linear(config.model_dim, all_heads * self.head_dim, bias=False)
        self.out_proj = nn.Linear(self.num_heads * self.head_dim, config.model_dim, bias=False)
        if config.normalize_qk_projections:
            self.q_norm = OpenELMRMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = OpenELMRMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, length, _ = hidden_states.shape
        projected = self.qkv_proj(hidden_states).view(batch, length, -1, self.head_dim)
        counts = [self.num_heads, self.num_key_value_heads, self.num_key_value_heads]
        query, key, value = projected.transpose(1, 2).split(counts, dim=1)
        if self.config.normalize_qk_projections:  # before the rotation
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return self.out_proj(attended.reshape(batch, length, -1).contiguous()), weights


class OpenELMFeedForward(nn.Module):
    """SwiGLU: the first half of ``proj_1``'s output is activated and scales the second half.

    Without ``ffn_with_glu``, ``proj_1`` has only one half, which is activated.
    """

    def __init__(self, config: OpenELMConfig, layer_idx: int) -> None:
        super().__init__()
        width = config.ffn_width(layer_idx)
        self.gated = config.ffn_with_glu
        self.proj_1 = nn.Linear(config.model_dim, width * (2 if self.gated else 1), bias=False)
        self.proj_2 = nn.Linear(width, config.model_dim, bias=False)
        self.act = ACT2FN[config.activation_fn_name]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden = self.proj_1(hidden_states)
        if not self.gated:
            return self.proj_2(self.act(hidden))
        gate, up = hidden.chunk(2, dim=-1)
        return self.proj_2(self.act(gate) * up)


class OpenELMDecoderLayer(nn.Module):
    def __init__(self, config: OpenELMConfig, layer_idx: int) -> None:
        super().__init__()
        self.attn_norm = OpenELMRMSNorm(config.model_dim, config.rms_norm_eps)
        self.attn = OpenELMAttention(config, layer_idx)
        self.ffn_norm = OpenELMRMSNorm(config.model_dim, config.rms_norm_eps)
        self.ffn = OpenELMFeedForward(config, layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        attended, _ = self.attn(
            hidden_states=self.attn_norm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.ffn(self.ffn_norm(hidden_states))


class OpenELMPreTrainedModel(PreTrainedModel):
    config_class = OpenELMConfig  # the base reads the annotation, which is a string here
    base_model_prefix = "transformer"
    _no_split_modules = ("OpenELMDecoderLayer",)
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012 - a class attribute of the base
        "hidden_states": OpenELMDecoderLayer,
        "attentions": OpenELMAttention,
    }


class OpenELMModel(OpenELMPreTrainedModel):
    """Maps token ids (B, T) to hidden states (B, T, C) after the final norm."""

    def __init__(self, config: OpenELMConfig) -> None:
        super().__init__(config)
        self.token_embeddings = nn.Embedding(config.vocab_size, config.model_dim)
        self.layers = nn.ModuleList(
            OpenELMDecoderLayer(config, index) for index in range(config.num_transformer_layers)
        )
        self.norm = OpenELMRMSNorm(config.model_dim, config.rms_norm_eps)
        self.rotary_emb = OpenELMRotaryEmbedding(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.token_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids and inputs_embeds: expected exactly one of them")
        if inputs_embeds is None:
            inputs_embeds = self.token_embeddings(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            length = inputs_embeds.shape[1]
            position_ids = torch.arange(seen, seen + length, device=inputs_embeds.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids)
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )


class OpenELMForCausalLM(OpenELMPreTrainedModel, GenerationMixin):
    """Maps token ids (B, T) to logits (B, T, V); ``share_input_output_layers`` ties the head."""

    _tied_weights_keys = {  # noqa: RUF012 - a class attribute of the base
        "lm_head.weight": "transformer.token_embeddings.weight"
    }

    def __init__(self, config: OpenELMConfig) -> None:
        super().__init__(config)
        self.transformer = OpenELMModel(config)
        self.lm_head = nn.Linear(config.model_dim, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.token_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.transformer.token_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Computes logits for the last ``logits_to_keep`` positions or these indices; 0: all."""
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def register() -> None:
    """Registers OpenELM with ``AutoConfig`` and ``AutoModelForCausalLM``; may be repeated."""
    AutoConfig.register(MODEL_TYPE, OpenELMConfig, exist_ok=True)
    AutoModelForCausalLM.register(OpenELMConfig, OpenELMForCausalLM, exist_ok=True)
