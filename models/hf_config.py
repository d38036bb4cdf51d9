"""Reads a Hugging Face ``config.json`` without overlooking anything.

A key that influences the numbers is either adopted by the re-authored model or refused with a
``ValueError`` that says what, where and what was expected. A key that is absent or null has the
default of the family's config class in transformers, because published configs omit such keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from litert_torch.generative.layers import model_config as cfg

HFConfig = Mapping[str, Any]

# transformers' ACT2FN names → the Generative API's activations. `gelu` is the exact erf form.
# `gelu_new`, `gelu_fast` and `gelu_pytorch_tanh` are the same tanh formula, written differently.
_ACTIVATIONS = {
    "silu": cfg.ActivationType.SILU,
    "swish": cfg.ActivationType.SILU,
    "gelu": cfg.ActivationType.GELU,
    "gelu_new": cfg.ActivationType.GELU_TANH,
    "gelu_fast": cfg.ActivationType.GELU_TANH,
    "gelu_pytorch_tanh": cfg.ActivationType.GELU_TANH,
    "relu": cfg.ActivationType.RELU,
    "linear": cfg.ActivationType.LINEAR,
}


def get(hf: HFConfig, key: str, default: Any) -> Any:
    """Returns ``hf[key]``, or the default if the key is absent or null."""
    value = hf.get(key)
    return default if value is None else value


def require(hf: HFConfig, key: str) -> Any:
    """Returns ``hf[key]``.

    Raises:
        ValueError: the key is absent or null.
    """
    value = hf.get(key)
    if value is None:
        raise ValueError(f"HF config: key {key!r} is missing; expected a value, as in config.json")
    return value


def refuse(key: str, value: Any, expected: str) -> ValueError:
    """Returns the error for a value that the re-authored model cannot express."""
    return ValueError(
        f"HF config: {key}={value!r} cannot be expressed by the re-authored model; "
        f"expected {expected}"
    )


def expect(hf: HFConfig, key: str, allowed: Any) -> None:
    """Refuses any value of ``key`` except ``allowed``; an absent or null key passes.

    Raises:
        ValueError: the config has another value.
    """
    value = hf.get(key)
    if value is not None and value != allowed:
        raise refuse(key, value, repr(allowed))


def activation(name: str, key: str) -> cfg.ActivationConfig:
    """Returns the Generative API's activation for a name of transformers' ``ACT2FN``.

    Raises:
        ValueError: the API has no activation that computes the same.
    """
    if name not in _ACTIVATIONS:
        raise refuse(key, name, "one of " + ", ".join(sorted(_ACTIVATIONS)))
    return cfg.ActivationConfig(_ACTIVATIONS[name])


@dataclass(frozen=True)
class Heads:
    """Attention geometry: query heads, key/value heads, and elements per head."""

    query: int
    kv: int
    dim: int


def heads(hf: HFConfig, *, default_kv: int | None = None, default_dim: int | None = None) -> Heads:
    """Reads the attention geometry from the keys that most families share.

    Args:
        hf: the config.
        default_kv: num_key_value_heads if the config has none; None means one per head.
        default_dim: head_dim if the config has none; None means hidden_size over heads.

    Raises:
        ValueError: the numbers do not divide.
    """
    query = require(hf, "num_attention_heads")
    kv = get(hf, "num_key_value_heads", default_kv or query)
    hidden = require(hf, "hidden_size")
    dim = hf.get("head_dim") or default_dim
    if dim is None:
        if hidden % query:
            raise refuse("hidden_size", hidden, f"a multiple of num_attention_heads={query}")
        dim = hidden // query
    if query % kv:
        raise refuse("num_key_value_heads", kv, f"a divisor of num_attention_heads={query}")
    return Heads(query, kv, dim)


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: the base, and the share of each head's elements that is rotated."""

    base: float
    share: float


def rope(hf: HFConfig, head_dim: int, *, partial: bool = False, default_share: float = 1.0) -> Rope:
    """Reads the rotary embedding in both spellings.

    transformers 5 writes ``rope_parameters: {rope_type, rope_theta, partial_rotary_factor}``;
    published configs have ``rope_theta``, ``rope_scaling`` and ``partial_rotary_factor`` at the
    top level. As in transformers (``convert_rope_params_to_dict``), ``rope_scaling`` replaces
    ``rope_parameters`` if it is present, and its values override those at the top level.

    Args:
        hf: the config.
        head_dim: elements per head.
        partial: whether the family reads ``partial_rotary_factor``; if not, it is ignored, as in
            transformers.
        default_share: ``partial_rotary_factor`` if the config has none.

    Raises:
        ValueError: scaled RoPE, per-layer RoPE, or an odd number of rotated elements.
    """
    key = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    inner: Mapping[str, Any] = hf.get(key) or {}
    nested = [name for name, value in inner.items() if isinstance(value, Mapping)]
    if nested:
        raise refuse(key, dict(inner), "one set of values for all layers")
    kind = inner.get("rope_type") or inner.get("type") or "default"
    if kind != "default":
        raise refuse(f"{key}.rope_type", kind, "'default' (RoPE without scaling)")
    base = float(get(inner, "rope_theta", get(hf, "rope_theta", 10000.0)))
    if not partial:
        share = 1.0
    else:
        share = float(
            get(inner, "partial_rotary_factor", get(hf, "partial_rotary_factor", default_share))
        )
    # Both transformers and DecoderOnlyModel truncate exactly this product. The factor is passed on
    # unchanged, because a share recomputed from the count could truncate to one less.
    rotated = int(share * head_dim)
    if rotated % 2 or not 0 < rotated <= head_dim:
        raise refuse(
            "partial_rotary_factor",
            share,
            f"an even number of rotated elements, up to {head_dim}, not {rotated}",
        )
    return Rope(base, share)


def check_model_type(hf: HFConfig, model_type: str) -> None:
    """Refuses the config of another architecture.

    Raises:
        ValueError: the config has a ``model_type`` that is not this family's.
    """
    given = hf.get("model_type")
    if given is not None and given != model_type:
        raise ValueError(
            f"HF config: model_type={given!r} is another architecture; expected {model_type!r}"
        )
