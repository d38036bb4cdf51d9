"""Loads quantization recipes: by name, from a JSON file, or from the user's Python object.

A recipe is a list of rules of ai-edge-quantizer: a later rule overrides an earlier one if both fit
an operator. The named recipes are those of litert-torch's own converter, with its names
(``QuantizationName`` in generative/utilities/converter.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeverify.core.choices import did_you_mean
from edgeverify.core.errors import EdgeVerifyError, RecipeError, UsageError

FLOAT32 = "float32"
ALL = "all"
NAMED = (
    "fp16",
    "dynamic_int8",
    "weight_only_int8",
    "dynamic_int4_block32",
    "dynamic_int4_block128",
)
RECIPES = (FLOAT32, *NAMED)
FORMS = (
    f"one of {', '.join((*RECIPES, ALL))}; or a JSON file of ai-edge-quantizer, or "
    "path/to/file.py:ATTR or package.module:ATTR with a GenerativeQuantRecipe or QuantConfig"
)


@dataclass(frozen=True)
class Recipe:
    """Says how a float file is quantized.

    Attributes:
        name: the name in reports: a name of ``RECIPES``, or a file's stem or an attribute.
        rules: the rules of ai-edge-quantizer, in order; none for ``float32``.
    """

    name: str
    rules: tuple[Mapping[str, Any], ...] = ()


def expand(given: Sequence[str], *, where: str = "--recipe") -> tuple[str, ...]:
    """Checks the user's recipes and returns each once; ``all`` means every named one.

    Args:
        given: the recipes as text, in one of the forms of ``FORMS``.
        where: the option, for errors.

    Raises:
        UsageError: a recipe has none of the forms; or two have the same name in the report; or one
            has the name of a named recipe that it is not.
    """
    chosen: dict[str, None] = {}
    for text in given:
        chosen.update(dict.fromkeys(RECIPES if text == ALL else (_checked(text, where),)))
    labels = [label(text) for text in chosen]
    for text in chosen:
        reserved = text not in RECIPES and label(text) in (*RECIPES, ALL)
        if reserved or labels.count(label(text)) > 1:
            raise UsageError(
                f"two recipes are called {label(text)!r}",
                where=f"{where} {text}",
                expected="names that differ, by which a report tells them",
                fix="rename the file or the attribute",
            )
    return tuple(chosen)


def label(recipe: str) -> str:
    """Returns the name of a recipe in reports, in JSON and in file names."""
    if recipe.endswith(".json"):
        return Path(recipe).stem
    return recipe.rpartition(":")[2]


def _checked(text: str, where: str) -> str:
    if text in RECIPES:
        return text
    if text.endswith(".json") or _place(text).endswith(".py"):
        if not Path(_place(text)).is_file():
            raise UsageError("there is no such file", where=f"{where} {text}", expected=FORMS)
        return text
    if ":" in text:
        return text
    raise UsageError(
        f"there is no {text!r}",
        where=where,
        expected=FORMS,
        fix=did_you_mean(text, (*RECIPES, ALL)),
    )


def _place(text: str) -> str:
    return text if text.endswith(".json") else text.rpartition(":")[0]


def load_recipe(recipe: str) -> Recipe:
    """Loads the rules of a recipe.

    Args:
        recipe: one of the forms of ``FORMS``, without ``all``.

    Raises:
        RecipeError: the file or the object is not a recipe, or a rule is for an operation that
            ai-edge-quantizer does not know.
        PortError: the module cannot be imported.
    """
    if recipe == FLOAT32:
        return Recipe(FLOAT32)
    if recipe.endswith(".json"):
        return Recipe(label(recipe), _rules_of_file(Path(recipe)))
    config = _named()[recipe]() if recipe in NAMED else _object(recipe)
    return Recipe(label(recipe), _translated(recipe, config))


def _named() -> Mapping[str, Callable[[], Any]]:
    from litert_torch.generative.quantize import quant_attrs, quant_recipes

    def int4(granularity: Any) -> Callable[[], Any]:
        return lambda: quant_recipes.full_dynamic_recipe(
            weight_dtype=quant_attrs.Dtype.INT4, granularity=granularity
        )

    return {
        "fp16": quant_recipes.full_fp16_recipe,
        "dynamic_int8": quant_recipes.full_dynamic_recipe,
        "weight_only_int8": quant_recipes.full_weight_only_recipe,
        "dynamic_int4_block32": int4(quant_attrs.Granularity.BLOCKWISE_32),
        "dynamic_int4_block128": int4(quant_attrs.Granularity.BLOCKWISE_128),
    }


def _object(recipe: str) -> Any:
    from edgeverify.core.loading import load_attribute

    found = load_attribute(recipe)
    return found() if callable(found) else found


def _translated(recipe: str, config: Any) -> tuple[Mapping[str, Any], ...]:
    """Returns the rules of a ``QuantConfig`` or ``GenerativeQuantRecipe``, or given rules."""
    from litert_torch.quantize.translate_recipe import translate_to_ai_edge_recipe

    if isinstance(config, list | tuple):
        return _rules(recipe, config)
    generative = getattr(config, "generative_recipe", config)
    try:
        generative.verify()
        return _rules(recipe, translate_to_ai_edge_recipe(generative))
    except EdgeVerifyError:
        raise
    except Exception as error:
        raise _no_recipe(recipe, f"{type(error).__name__}: {error}") from error


def _rules_of_file(path: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _no_recipe(path, str(error)) from error
    return _rules(path, found)


def _rules(where: object, found: Any) -> tuple[Mapping[str, Any], ...]:
    """Returns rules as plain data; the quantizer itself accepts or refuses their other contents.

    The quantizer does not report an unknown operation if the rule leaves it in float.
    """
    if not isinstance(found, list | tuple) or not found:
        raise _no_recipe(where, "it is no list of rules")
    for rule in found:
        if not isinstance(rule, Mapping) or not {"regex", "operation"} <= rule.keys():
            raise _no_recipe(where, "a rule has no 'regex' or no 'operation'")
    known = _operations()
    for number, rule in enumerate(found, 1):
        if rule["operation"] not in known:
            raise RecipeError(
                f"rule {number} is for an operation {rule['operation']!r}, which there is not",
                where=where,
                expected="one of ai-edge-quantizer's, e.g. FULLY_CONNECTED, or * for all",
                fix=did_you_mean(str(rule["operation"]), known) or "see docs/quantization.md",
            )
    return tuple(json.loads(json.dumps(list(found))))


def _operations() -> tuple[str, ...]:
    """Returns the operations of ai-edge-quantizer that a rule may be for."""
    from ai_edge_quantizer.qtyping import TFLOperationName

    return tuple(operation.value for operation in TFLOperationName)


def _no_recipe(where: object, reason: str) -> RecipeError:
    return RecipeError(
        f"holds no recipe ({reason})",
        where=where,
        expected="a list of rules as ai-edge-quantizer writes them, or a GenerativeQuantRecipe",
        fix="see docs/quantization.md",
    )
