"""The one way from a config dict to a class of transformers."""

from __future__ import annotations

import pytest
import torch

import edgeverify_models as models
from edgeverify.hf.config import config_differences, meta_model, reference_config


@pytest.mark.parametrize("name", list(models.CATALOGUE))
def test_how_a_checkpoint_was_saved_does_not_reach_the_model(name: str) -> None:
    given = {
        **models.load(name).hf_configs["tiny"],
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "auto_map": {"AutoModelForCausalLM": "remote.Code"},
        "quantization_config": {"quant_method": "gptq", "bits": 4},
    }
    before = dict(given)
    model = meta_model(given)
    assert given == before
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert not hasattr(model.config, "auto_map")


def test_differences_are_those_of_the_model() -> None:
    config = dict(models.load("tinyllama").hf_configs["tiny"])
    same = {**config, "torch_dtype": "float16", "bos_token_id": 7, "unknown_to_llama": True}
    del same["attention_bias"]  # False is transformers' default
    assert config_differences(config, same) == {}
    other = {**config, "rms_norm_eps": 1e-5}
    assert config_differences(config, other) == {"rms_norm_eps": (5e-3, 1e-5)}


def test_an_unknown_family_is_told() -> None:
    with pytest.raises(ValueError, match="nonesuch"):
        reference_config({"model_type": "nonesuch"})
    with pytest.raises(KeyError, match="model_type"):
        reference_config({})
