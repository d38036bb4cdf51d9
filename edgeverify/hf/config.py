"""Builds Hugging Face configs and models from plain dicts; the only way from ``config.json``.

The checkpoint layer takes names and shapes from here, the reference backend takes its model from
here. So both use the same config object.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

# Keys that say how a model was saved, trained or is to be loaded, and nothing about the function
# that it computes. ``auto_map`` would let transformers look for remote code, ``dtype`` would make
# the parameters bfloat16, ``quantization_config`` would replace the layers.
_NOT_OF_THE_MODEL = frozenset(
    {
        "_attn_implementation",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "dtype",
        "quantization_config",
        "torch_dtype",
        "transformers_version",
    }
)
# More keys that do not affect a forward pass over given token ids.
_NOT_IN_THE_FORWARD = frozenset(
    {
        "_model_name_or_path",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "embd_pdrop",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "unk_token_id",
        "use_cache",
    }
)


def reference_config(hf_config: Mapping[str, Any]) -> Any:
    """Builds the transformers config object from a ``config.json`` dict.

    Keys that only say how the checkpoint was saved (``torch_dtype``, ``auto_map``,
    ``quantization_config``, …) are left out: the reference is built in float32, by local code.

    Args:
        hf_config: HF's own keys, with ``model_type``; ``rope_theta`` and ``rope_parameters`` both
            work.

    Returns:
        The family's ``PreTrainedConfig``.

    Raises:
        KeyError: there is no ``model_type``.
        ValueError: transformers does not know the ``model_type``, or refuses a value.
    """
    from transformers import AutoConfig

    fields = {key: value for key, value in hf_config.items() if key not in _NOT_OF_THE_MODEL}
    model_type = fields.pop("model_type")
    if model_type == "openelm":
        from edgeverify.hf import openelm

        openelm.register()
    return AutoConfig.for_model(model_type, **fields)


def meta_model(hf_config: Mapping[str, Any], **choices: Any) -> nn.Module:
    """Builds the reference model without memory: its float32 parameters are on the meta device.

    Args:
        hf_config: as for ``reference_config``.
        choices: for ``from_config``, e.g. ``attn_implementation``.

    Raises:
        Exception: whatever transformers raises for a config that does not describe a model.
    """
    from transformers import AutoModelForCausalLM

    config = reference_config(hf_config)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e.g. initialisation of tensors without elements
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **choices).eval()


def config_differences(
    left: Mapping[str, Any], right: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Compares two ``config.json`` dicts by the models that they describe.

    Both pass through transformers, so that ``rope_theta`` equals its newer spelling and an absent
    key equals its default. Token ids, dropout and the like are ignored. So are keys that the
    family's config class does not know (``is_llama_config`` of SmolLM2).

    Returns:
        Key → the values on the two sides, for the keys that differ; empty for the same model.
    """
    a, b = _described(left), _described(right)
    return {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}


def _described(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    config = reference_config(hf_config)
    known = type(config)().to_dict().keys() - _NOT_OF_THE_MODEL - _NOT_IN_THE_FORWARD
    return {key: value for key, value in config.to_dict().items() if key in known}
