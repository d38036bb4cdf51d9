"""Quantizes a float .tflite: one conversion serves every recipe.

ai-edge-quantizer works on the file, not on the model. litert-torch's own conversion with a recipe
does the same: it quantizes the float file that it has just written. The results are the same, byte
by byte (a test checks this), in 2 s for SmolLM2-135M instead of 55 to 84 s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeverify.core.errors import ArtifactError, RecipeError
from edgeverify.core.quiet import quiet
from edgeverify.core.store import entries
from edgeverify.core.units import shown
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.litert.recipes import FLOAT32, NAMED, Recipe

# A change to how files are quantized must change this.
CACHE_VERSION = 2


def quantized(path: Path, recipe: Recipe, *, cache: Path | None = None) -> Path:
    """Returns the quantized file, from the cache or made now.

    Args:
        path: a float32 .tflite.
        recipe: the rules; ``float32`` returns ``path`` itself.
        cache: another cache than the default one.

    Raises:
        RecipeError: the recipe cannot be applied to this file, e.g. because a width is not a
            multiple of its block, or it needs calibration data, or it would change nothing.
        ArtifactError: the file cannot be read, or the disk is full.
    """
    if recipe.name == FLOAT32:
        return path
    key = entries.digest(
        "quantized",
        CACHE_VERSION,
        # ai-edge-quantizer does not use transformers, and the file's bytes identify the file.
        entries.versions("transformers"),
        entries.file_digest(path, root=cache),
        list(recipe.rules),
    )
    return entries.cached(
        "quantized", key, ".tflite", lambda target: _quantize(path, recipe, target), root=cache
    )


def _quantize(path: Path, recipe: Recipe, target: Path) -> None:
    from ai_edge_quantizer.quantizer import Quantizer

    entries.require_room(target.parent, path.stat().st_size, "as much as the float file takes")
    try:
        with quiet(show=False), weights_cast_once():
            worker = Quantizer(str(path), [dict(rule) for rule in recipe.rules])
            if worker.need_calibration:
                raise ValueError("it quantizes activations statically, from calibration data")
            # It maps both files, so that neither is in memory as a whole.
            worker.quantize(serialize_to_path=str(target), enable_progress_report=False)
    except MemoryError as error:
        raise ArtifactError(
            "there is not enough memory to quantize it",
            where=path,
            expected=f"about three times its {shown(path.stat().st_size)}",
            fix="close other programs",
        ) from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RecipeError(
            f"cannot be applied ({lines[0]})",
            where=f"recipe {recipe.name}",
            expected="rules that fit the operators and the widths of this model",
            fix="take another recipe, or leave the operators it names in float by a later rule",
        ) from error
    if recipe.name not in NAMED and _same_dtypes(path, target) and not _asks_for_nothing(recipe):
        raise RecipeError(
            "quantizes nothing: none of its rules fits an operator of the file that it can be "
            "applied to",
            where=f"recipe {recipe.name}",
            expected="rules for FULLY_CONNECTED or EMBEDDING_LOOKUP, which hold the weights, or *",
            fix="correct the rules' operation and regex: edgeverify inspect shows the operators",
        )


def _same_dtypes(one: Path, other: Path) -> bool:
    """Checks whether two files have as many tensors of each dtype in each subgraph."""
    first, second = (
        [Counter(t.type for t in graph.tensors) for graph in ModelFile(path).model.subgraphs]
        for path in (one, other)
    )
    return first == second


def _asks_for_nothing(recipe: Recipe) -> bool:
    return all(rule.get("algorithm_key") == "no_quantize" for rule in recipe.rules)


@contextmanager
def weights_cast_once() -> Iterator[None]:
    """Makes ai-edge-quantizer cast each float weight to one array inside the ``with``.

    It uses the quantizer's own registration and restores the registered functions afterwards. The
    file is the same, byte by byte (a test checks this).
    """
    from ai_edge_quantizer import algorithm_manager as manager
    from ai_edge_quantizer.algorithms.nonlinear_quantize import float_casting
    from ai_edge_quantizer.qtyping import QuantizeMode

    key = manager.AlgorithmName.FLOAT_CASTING

    def register(operator: Any, materialize: Callable[..., Any]) -> None:
        manager.register_quantized_op(
            key, operator, float_casting.init_qsvs, float_casting.calibrate, materialize
        )

    operators = manager.get_supported_ops(key)
    own = {op: manager.get_quantization_func(key, op, QuantizeMode.MATERIALIZE) for op in operators}
    cast: dict[Any, Any] = {}
    for operator, materialize in own.items():
        register(operator, _once(materialize, cast))
    try:
        yield
    finally:
        for operator, materialize in own.items():
            register(operator, materialize)


def _once(materialize: Callable[..., Any], cast: dict[Any, Any]) -> Callable[..., Any]:
    """Wraps ``materialize``: all readers of a weight get the first reader's parameters."""

    def materialized(op_info: Any, graph_info: Any, *rest: Any, **options: Any) -> Any:
        tensors = [graph_info.subgraph_tensors[i] for i in op_info.op.inputs if i >= 0]
        # Tensors of one buffer but with another shape are other weights.
        keys = {t.name.decode(): (t.buffer, tuple(t.shape)) for t in tensors if t.shape is not None}
        results = materialize(op_info, graph_info, *rest, **options)
        for result in results:
            result.consumers = result.consumers and [
                consumer
                if consumer.parameters is None
                else replace(
                    consumer,
                    parameters=cast.setdefault(keys[result.tensor_name], consumer.parameters),
                )
                for consumer in result.consumers
            ]
        return results

    return materialized
