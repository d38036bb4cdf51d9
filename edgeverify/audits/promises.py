"""Resolves what a recipe promises for each operator of a file, and finds rules that match none.

The rules are resolved as ai-edge-quantizer resolves them: by its own recipe manager, from an
operator's kind and its scope. The scope is the names of the operator's outputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from edgeverify.core.errors import RecipeError
from edgeverify.litert.flatbuffer.graph import Graph, Op
from edgeverify.litert.flatbuffer.quantization import BLOCK, CHANNEL, TENSOR
from edgeverify.litert.recipes import Recipe

_EVERYTHING = (".*", "*", "")
_UNTOUCHED = "no_quantize"
MIN_MAX = "min_max_uniform_quantize"


@dataclass(frozen=True)
class Promise:
    """How a weight is stored according to a recipe.

    Attributes:
        dtype: ``int8``, ``int4``, … ``float16``; ``float32`` if the weight is not to be quantized.
        granularity: ``tensor``, ``channel`` or ``block``.
        block_size: elements of a block, or None.
        symmetric: whether the integers are to be symmetric around zero.
        in_integers: whether the operator is to take the integers as they are stored, and not the
            output of a DEQUANTIZE.
        algorithm: ai-edge-quantizer's name of the algorithm that chooses scales.
        said: whether a rule says so; False if no rule matches and the weight stays float.
    """

    dtype: str = "float32"
    granularity: str = TENSOR
    block_size: int | None = None
    symmetric: bool = True
    in_integers: bool = False
    algorithm: str = _UNTOUCHED
    said: bool = False

    def __str__(self) -> str:
        by = {TENSOR: "", CHANNEL: " by channel", BLOCK: f" in blocks of {self.block_size}"}
        return self.dtype + ("" if "float" in self.dtype else by[self.granularity])


class Promises:
    """The promises of a recipe, operator by operator.

    Raises:
        RecipeError: ai-edge-quantizer refuses a rule.
    """

    def __init__(self, recipe: Recipe) -> None:
        from ai_edge_quantizer.recipe_manager import RecipeManager

        self._recipe = recipe
        self._manager = RecipeManager()
        try:
            self._manager.load_quantization_recipe([dict(rule) for rule in recipe.rules])
        except Exception as error:
            raise RecipeError(
                f"holds a rule that cannot be applied ({type(error).__name__}: {error})",
                where=f"recipe {recipe.name}",
                expected="rules as ai-edge-quantizer writes them",
                fix="see docs/quantization.md",
            ) from error

    def of(self, graph: Graph, op: Op) -> Promise:
        """Returns what the recipe promises for an operator's weight."""
        algorithm, config = self._manager.get_quantization_configs(op.name, scope(graph, op))
        name = str(getattr(algorithm, "value", algorithm))
        if name == _UNTOUCHED:
            return Promise(said=self._says_no(graph, op))
        weight = config.weight_tensor_config
        kind = "float" if _value(weight.dtype) == "FLOAT" else "int"
        # The quantizer applies the limit only to linear layers (_are_weights_too_small).
        limit = config.min_weight_elements if kind == "int" and op.name == "FULLY_CONNECTED" else 0
        if limit and math.prod(graph.shape(op.inputs[1])) < limit:
            return Promise(said=True)
        granularity, block = _granularity(str(_value(weight.granularity)))
        return Promise(
            f"{kind}{weight.num_bits}",
            granularity if kind == "int" else TENSOR,
            block,
            bool(weight.symmetric),
            kind == "int" and _value(config.compute_precision) == "INTEGER",
            name,
            said=True,
        )

    def _says_no(self, graph: Graph, op: Op) -> bool:
        """Whether a rule deliberately excludes the operator."""
        return any(
            rule.get("algorithm_key") == _UNTOUCHED
            and rule["operation"] in ("*", op.name)
            and re.search(rule["regex"], scope(graph, op))
            for rule in self._recipe.rules
        )

    def idle(self, graphs: Iterable[Graph]) -> Iterator[str]:
        """Yields rules whose own regular expression matches none of the operators they are for."""
        scopes = [(op.name, scope(graph, op)) for graph in graphs for op in graph.ops]
        for index, rule in enumerate(self._recipe.rules):
            regex, kind = rule["regex"], rule["operation"]
            fits = (re.search(regex, text) for name, text in scopes if kind in ("*", name))
            if regex not in _EVERYTHING and not any(fits):
                yield f"rule {index + 1}, {regex!r}"


def scope(graph: Graph, op: Op) -> str:
    """Returns the text that a recipe's regular expressions match: the outputs' names, joined."""
    from ai_edge_quantizer.utils.tfl_flatbuffer_utils import get_op_scope

    return str(get_op_scope(graph.raw.operators[op.index], graph.raw.tensors))


def _granularity(name: str) -> tuple[str, int | None]:
    if name.startswith("BLOCKWISE_"):
        return BLOCK, int(name.rpartition("_")[2])
    return (CHANNEL if name == "CHANNELWISE" else TENSOR), None


def _value(item: Any) -> Any:
    return getattr(item, "value", item)
