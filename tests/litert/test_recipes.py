"""Recipes in all their forms, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeverify.core.errors import PortError, RecipeError, UsageError
from edgeverify.litert.recipes import ALL, FLOAT32, NAMED, RECIPES, expand, label, load_recipe

RULE = {"regex": ".*", "operation": "*", "algorithm_key": "no_quantize"}


def test_all_is_every_named_recipe_once() -> None:
    assert expand([ALL]) == RECIPES
    assert expand(["fp16", ALL]) == ("fp16", *(name for name in RECIPES if name != "fp16"))
    assert expand([FLOAT32, "fp16", "fp16"]) == (FLOAT32, "fp16")


def test_a_name_that_is_none_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no 'dynamic_int9'.*did you mean 'dynamic_int8'"):
        expand(["dynamic_int9"])


@pytest.mark.parametrize("text", ["mine.json", "mine.py:RECIPE"])
def test_a_file_that_is_missing_is_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(UsageError, match=f"--recipe {text}: there is no such file"):
        expand([text])


def test_two_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fp16.json"
    path.write_text(json.dumps([RULE]))
    with pytest.raises(UsageError, match="two recipes are called 'fp16'"):
        expand(["fp16", str(path)])


def test_labels() -> None:
    assert label("fp16") == "fp16"
    assert label("a/b/mine.json") == "mine"
    assert label("a/b/file.py:MIX") == "MIX"


def test_a_json_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([RULE]))
    recipe = load_recipe(str(path))
    assert recipe.name == "mine"
    assert recipe.rules == (RULE,)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "holds no recipe"),
        ("[]", "it is no list of rules"),
        ('{"regex": ".*"}', "it is no list of rules"),
        ('[{"operation": "*"}]', "a rule has no 'regex'"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=told) as caught:
        load_recipe(str(path))
    assert str(path) in str(caught.value)


def test_an_operation_that_there_is_not_is_refused(tmp_path: Path) -> None:
    """The quantizer takes such a rule without a word where it leaves its operators in float."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([RULE, {**RULE, "operation": "Fully_Conected"}]))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert str(caught.value) == (
        f"{path}: rule 2 is for an operation 'Fully_Conected', which there is not; expected one of "
        "ai-edge-quantizer's, e.g. FULLY_CONNECTED, or * for all; did you mean 'FULLY_CONNECTED'?"
    )


def test_the_named_ones_have_rules() -> None:
    for name in NAMED:
        (rule,) = load_recipe(name).rules
        bits = rule["op_config"]["weight_tensor_config"]["num_bits"]
        assert str(bits) in name
    assert load_recipe(FLOAT32).rules == ()


def test_objects_of_the_generative_api_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from litert_torch.generative.quantize import quant_recipes\n"
        "CONFIG = quant_recipes.full_dynamic_recipe()\n"
        "RECIPE = CONFIG.generative_recipe\n"
        "def make():\n    return CONFIG\n"
        "RULES = [{'regex': '.*', 'operation': '*'}]\n"
        "NUMBER = 3\n"
    )
    wanted = load_recipe("dynamic_int8").rules
    for attribute in ("CONFIG", "RECIPE", "make"):
        found = load_recipe(f"{path}:{attribute}")
        assert found.rules == wanted
        assert found.name == attribute
    assert len(load_recipe(f"{path}:RULES").rules) == 1
    with pytest.raises(RecipeError, match="holds no recipe"):
        load_recipe(f"{path}:NUMBER")
    with pytest.raises(PortError, match="has no 'OTHER'"):
        load_recipe(f"{path}:OTHER")


@pytest.mark.parametrize("name", ["float32", "dynamic_int8", "all"])
def test_a_file_does_not_pass_for_a_named_recipe(tmp_path: Path, name: str) -> None:
    """``float32.json`` was once the float file, whatever it said."""
    path = tmp_path / f"{name}.json"
    path.write_text("[]")
    with pytest.raises(UsageError, match=f"two recipes are called '{name}'"):
        expand([str(path)])
