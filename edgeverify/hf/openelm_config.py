"""The config of OpenELM, with the keys of Apple's ``config.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

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
