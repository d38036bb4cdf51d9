"""What is told of a file: of a model in each recipe, of a file that is none, of a container."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeverify.litert import contained
from edgeverify.litert.inspect import inspect
from tests.benchmarks.test_damage import bundled
from tests.litert.flatbuffer import made

Get = Callable[..., Any]
RECIPES = {
    "fp16": ("full_fp16_recipe", {}, ("float16", "", None)),
    "dynamic_int8": ("full_dynamic_recipe", {}, ("int8", "channel", None)),
    "weight_only_int8": ("full_weight_only_recipe", {}, ("int8", "channel", None)),
    "dynamic_int4_block32": (
        "full_dynamic_recipe",
        {"weight_dtype": "INT4", "granularity": "BLOCKWISE_32"},
        ("int4", "block", 32),
    ),
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    weight = made.tensor("w", (3, 4), made.TYPES.INT8, 1)
    weight.quantization = made.affine(np.ones(3), np.zeros(3, np.int64), 0)
    return made.write(tmp_path / "x.tflite", "FULLY_CONNECTED", weight, bytes(12), (1, 4), (1, 3))


def test_a_file_that_is_no_language_model_is_shown(small: Path) -> None:
    told = inspect(small)
    assert (told["format"], told["bytes"], told["container"]) == (
        "tflite",
        small.stat().st_size,
        None,
    )
    model = told["model"]
    assert model["signatures"] == [
        {
            "name": "run",
            "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 4]}],
            "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 3]}],
        }
    ]
    assert model["llm"]["unknown"].startswith("is no language model of a form that is known")
    assert model["ops"] == {"run": {"FULLY_CONNECTED": 1}}
    weight = {
        "name": "w",
        "dtype": "int8",
        "granularity": "channel",
        "block_size": None,
        "shape": (3, 4),
        "size": 12,
        "buffer": 1,
    }
    assert model["weights"] == [weight]
    assert model["weights_by_dtype"] == {"int8": {"tensors": 1, "elements": 12, "bytes": 12}}
    json.dumps(told)


def test_the_child_that_reads_needs_no_torch(small: Path) -> None:
    with contained.Child() as child:
        child.call("edgeverify.litert.inspect:inspect", small)
        child.call("benchmarks.damaging.running:run_signatures", small, kernel="builtin")
        loaded = set(child.call("tests.litert.contained.misdeeds:modules", small))
    heavy = {"torch", "tensorflow", "transformers", "litert_torch", "jax"}
    assert heavy & loaded == set()
    assert sys.modules["numpy"].__name__ in loaded


@pytest.mark.slow
def test_a_model_is_shown(converted: Get, tmp_path: Path) -> None:
    source = converted("gemma2", "transposed", mask_as_input=True)
    told = inspect(bundled(source.path, tmp_path))
    assert told["format"] == "litertlm"
    assert told["container"]["tokenizer"] is None
    assert told["container"]["facts"]["author"] == "somebody"
    model = told["model"]
    assert model == inspect(source.path)["model"]
    assert set(model["llm"]["masks"]) == {"global", "local"}
    assert model["llm"]["kv_layout"] == "transposed"
    assert model["litert_lm"]["accepts"] is False
    names = [weight["name"] for weight in model["weights"]]
    state = {name for name, _ in source.model.named_parameters()}
    assert state <= set(names), "a weight without its name"
    assert set(names) - state <= {"lm_head.weight"}, "a name that the model has not"
    elements = sum(p.numel() for p in source.model.parameters())
    assert model["weights_by_dtype"]["float32"]["elements"] <= elements  # norms of ones are shared


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_shows_in_each_layer(recipe: str, converted: Get, tmp_path: Path) -> None:
    from ai_edge_quantizer import quantizer
    from litert_torch.generative.quantize import quant_attrs, quant_recipes
    from litert_torch.quantize import translate_recipe

    name, options, expected = RECIPES[recipe]
    enums = {"weight_dtype": quant_attrs.Dtype, "granularity": quant_attrs.Granularity}
    chosen = {key: enums[key][value] for key, value in options.items()}
    generative = getattr(quant_recipes, name)(**chosen).generative_recipe
    source = converted("tinyllama", "default").path
    quantized = quantizer.Quantizer(
        str(source), translate_recipe.translate_to_ai_edge_recipe(generative)
    ).quantize()
    path = tmp_path / "x.tflite"
    path.write_bytes(bytes(quantized.quantized_model))
    plain = inspect(source)["model"]["weights"]
    found = inspect(path)["model"]["weights"]
    assert [w["name"] for w in found] == [w["name"] for w in plain]
    for weight in found:
        kept = (weight["dtype"], weight["granularity"], weight["block_size"])
        is_norm = "norm" in weight["name"]
        assert kept == (("float32", "", None) if is_norm else expected), weight["name"]
