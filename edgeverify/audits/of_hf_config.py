"""Reads the HF config as transformers does: the modules it builds and what its forward does.

Nothing is taken from the ports' own reading of configs. Fields of a block are named
``blocks.{i}.{field}``; widths are in elements, windows in tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from edgeverify.audits import probe
from edgeverify.audits.model import Readings
from edgeverify.audits.probe import first
from edgeverify.hf.config import meta_model
from edgeverify.hf.forward import Forward, forward_of

NORMS = ("attention norm", "attention output norm", "feed-forward norm", "feed-forward output norm")
HEAD_NORMS = ("query norm", "key norm")
NONE = "none"


def declared(hf_config: Mapping[str, Any]) -> Readings:
    """Reads every field of a config.

    Args:
        hf_config: the ``config.json`` dict; defaults are those of transformers' config class.

    Raises:
        Exception: any exception that transformers raises for a config that makes no model.
    """
    model: Any = meta_model(hf_config)
    base = getattr(model, model.base_model_prefix)
    config = model.config
    out = Readings("HF config")
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    forward = forward_of(hf_config)
    out.values |= {
        "vocabulary": table.num_embeddings,
        "width": table.embedding_dim,
        "layers": len(base.layers),
        "max length": config.max_position_embeddings,
        "tied head": "yes" if config.tie_word_embeddings else "no",
        "head bias": probe.has_bias(head),
    }
    _outside(out, forward, first(table, "scalar_embed_scale"), len(base.layers))
    read_norm(out, "final norm", first(base, "norm", "final_layernorm", "ln_f"))
    _rotary(out, config, base.layers[0], forward)
    for i, layer in enumerate(base.layers):
        _layer(out, f"blocks.{i}.", layer)
    return out


def _outside(out: Readings, forward: Forward, table_scale: Any, layers: int) -> None:
    """Takes what the forward does outside of its layers."""
    unclear = forward.unclear
    if "embedding_factor" in unclear:
        out.unread["embedding scale"] = unclear["embedding_factor"]
    else:
        scale = 1.0 if table_scale is None else float(table_scale)
        out.values["embedding scale"] = _scale(scale * forward.embedding_factor)
    if "softcap" in unclear:
        out.unread["final softcap"] = unclear["softcap"]
    else:
        out.values["final softcap"] = forward.softcap or NONE
    for i in range(layers):
        if "windows" in unclear:
            out.unread[f"blocks.{i}.window"] = unclear["windows"]
        else:
            out.values[f"blocks.{i}.window"] = forward.windows[i] or NONE


def _scale(value: float) -> Any:
    """Returns a factor; a factor of 1 changes nothing and counts as no factor."""
    return NONE if value == 1.0 else value


def read_norm(out: Readings, field: str, norm: Any) -> None:
    """Reads a norm's kind, epsilon and factor; ``none`` if there is no module."""
    if not isinstance(norm, nn.Module):
        out.values[field] = NONE
        return
    try:
        out.values[field] = probe.norm_kind(norm)
        out.values[f"{field} factor"] = "1 + weight" if probe.norm_adds_one(norm) else "weight"
    except Exception as error:  # e.g. the norm has no weights (OLMo)
        out.unread[field] = (
            f"{type(norm).__name__} cannot be tried: {type(error).__name__}: {error}"
        )
    eps = probe.norm_eps(norm)
    if eps is None:
        out.unread[f"{field} eps"] = f"{type(norm).__name__} has no eps"
    else:
        out.values[f"{field} eps"] = eps


def _rotary(out: Readings, config: Any, layer: Any, forward: Forward) -> None:
    attention = _attention(layer)
    rope: Mapping[str, Any] = first(config, "rope_parameters") or {}
    base = rope.get("rope_theta", getattr(config, "rope_freq_constant", None))
    if base is None:
        out.unread["rotary base"] = "the config has neither rope_theta nor rope_freq_constant"
    else:
        out.values["rotary base"] = float(base)
    out.values["rotary scaling"] = rope.get("rope_type", "default")
    rotated = forward.rotated[0] if forward.rotated else None
    if rotated is None:
        rotated = first(attention, "rotary_ndims", "rotary_dim")
    if rotated is None:
        reason = forward.unclear.get("rotated", "transformers gives its layers no angles")
        out.unread["rotary elements"] = reason
    else:
        out.values["rotary elements"] = int(rotated)


def _attention(layer: Any) -> Any:
    return first(layer, "self_attn", "attn", "attention")


def _layer(out: Readings, at: str, layer: Any) -> None:
    attention = _attention(layer)
    feed_forward = first(layer, "mlp", "ffn", "feed_forward")
    qkv = _linears(attention, ("qkv_proj",), ("q_proj", "k_proj", "v_proj"))
    output = first(attention, "o_proj", "dense", "out_proj")
    down = first(feed_forward, "down_proj", "fc2", "proj_2")
    inner = _linears(
        feed_forward, ("gate_up_proj",), ("proj_1",), ("gate_proj", "up_proj"), ("fc1",)
    )
    dim = attention.head_dim
    heads = first(attention, "num_heads") or output.in_features // dim
    groups = first(attention, "num_key_value_heads") or heads // attention.num_key_value_groups
    name, _ = probe.activation(first(feed_forward, "act_fn", "activation_fn", "act"))
    rows = sum(linear.out_features for linear in inner)
    out.values |= {
        f"{at}heads": heads,
        f"{at}key/value heads": groups,
        f"{at}head_dim": dim,
        f"{at}feed-forward width": down.in_features,
        f"{at}gated": "yes" if rows == 2 * down.in_features else "no",
        f"{at}qkv bias": probe.has_bias(*qkv),
        f"{at}attention output bias": probe.has_bias(output),
        f"{at}feed-forward bias": probe.has_bias(down, *inner),
        f"{at}query scale": float(attention.scaling),
        f"{at}attention softcap": first(attention, "attn_logit_softcapping") or NONE,
    }
    if name == probe.ANOTHER:
        out.unread[f"{at}activation"] = "transformers' activation is none that is known here"
    else:
        out.values[f"{at}activation"] = name
    _layer_norms(out, at, layer, attention)


def _linears(owner: Any, *choices: tuple[str, ...]) -> list[Any]:
    """Returns the first group of linear layers that is complete."""
    for names in choices:
        found = [getattr(owner, name, None) for name in names]
        if all(isinstance(linear, nn.Module) for linear in found):
            return found
    raise AttributeError(f"{type(owner).__name__} has none of {choices}")


def _layer_norms(out: Readings, at: str, layer: Any, attention: Any) -> None:
    """Reads the norms of a layer.

    ``post_attention_layernorm`` is the attention's if the feed-forward has its own norms.
    """
    before_ff = first(layer, "pre_feedforward_layernorm")
    after_ff = first(layer, "post_feedforward_layernorm")
    after = first(layer, "post_attention_layernorm")
    own = before_ff is not None or after_ff is not None
    roles = {
        "attention norm": first(layer, "input_layernorm", "attn_norm"),
        "attention output norm": after if own else None,
        "feed-forward norm": before_ff if own else first(layer, "ffn_norm") or after,
        "feed-forward output norm": after_ff,
        "query norm": first(attention, "q_norm", "q_layernorm"),
        "key norm": first(attention, "k_norm", "k_layernorm"),
    }
    for role, norm in roles.items():
        read_norm(out, f"{at}{role}", norm)
    # One norm serves both: attention and feed-forward run in parallel.
    shared = roles["feed-forward norm"] is None and after_ff is None
    out.values[f"{at}parallel residual"] = "yes" if shared else "no"
