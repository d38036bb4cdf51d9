"""Quantizes a float file by each recipe, audits the result and judges it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeverify.audits.attributes import odd_attributes
from edgeverify.audits.file_weights import audit_file
from edgeverify.audits.of_hf_config import declared
from edgeverify.audits.promises import Promises
from edgeverify.core.errors import ArtifactError, RecipeError
from edgeverify.core.judge import Baseline
from edgeverify.core.leg import QUANTIZATION, Leg
from edgeverify.core.results import UNCHECKED, AuditResult, LegResult, merged, unchecked
from edgeverify.legs.quantization.leg import judge_file
from edgeverify.legs.quantization.weights import FileWeights, read_weights
from edgeverify.legs.run import Run
from edgeverify.legs.runtime.stages import FileRun, without_taps
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.litert.quantize import quantized
from edgeverify.litert.recipes import FLOAT32, Recipe, load_recipe


@dataclass(frozen=True)
class Checked:
    """The verdict on the file of one recipe.

    Attributes:
        leg: ``quantization:{recipe}``.
        audit: of the file's weights; None if there is no file.
        file: the file as it ran; None if it did not run.
    """

    leg: LegResult
    audit: AuditResult | None = None
    file: FileRun | None = None


def check_recipes(
    run: Run, chosen: Sequence[str], path: Path, baseline: Baseline, *, blocked: str = ""
) -> Iterator[Checked]:
    """Checks the file of each recipe except ``float32``.

    Args:
        run: of the original checkpoint, decode tokens known.
        chosen: recipes, as ``edgeverify.litert.recipes.expand`` returns them.
        path: the float file.
        baseline: the reference with the checkpoint's own weights.
        blocked: why the files cannot be judged, because their float file is already wrong; they are
            still audited.

    Raises:
        RecipeError: a recipe contains no rules.
    """
    for name in chosen:
        if name != FLOAT32:
            yield _check(run, load_recipe(name), path, baseline, blocked)


def _check(run: Run, recipe: Recipe, path: Path, baseline: Baseline, blocked: str) -> Checked:
    leg = Leg(QUANTIZATION, recipe.name)
    try:
        with run.timed("quantize"):
            file = quantized(path, recipe, cache=run.cache)
    except RecipeError as error:
        return Checked(without_taps(leg, UNCHECKED, str(error)))
    audit, weights = audit_quantized(run, file, recipe)
    if blocked or weights is None:
        reason = blocked or "its weights could not be read: see the audit"
        return Checked(without_taps(leg, UNCHECKED, reason), audit)
    try:
        judged = judge_file(run, file, weights, leg, baseline)
    except ArtifactError as error:  # one bad file must not lose the other recipes' verdicts
        return Checked(without_taps(leg, UNCHECKED, str(error)), audit)
    return Checked(judged.leg, audit, judged)


def audit_quantized(run: Run, path: Path, recipe: Recipe) -> tuple[AuditResult, FileWeights | None]:
    """Compares a quantized file's weights with the checkpoint's and with its recipe.

    Args:
        run: of the original checkpoint.
        path: the file.
        recipe: the recipe that made it.

    Returns:
        The audit, and what the file computes with; None if that cannot be determined.
    """
    title = str(Leg(QUANTIZATION, recipe.name))
    config, state = run.model().config, run.state()
    with run.timed("audits"):
        try:
            shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
            weights = read_weights(path, run.hf_config, config, shapes)
        except ArtifactError as error:
            return unchecked(title, "file", str(error)), None
        file = ModelFile(path)
        said, found = declared(run.hf_config), weights.found
        audit = audit_file(file, found, config, state, said, Promises(recipe))
        odd = odd_attributes(said, found, found)
    return merged(title, [AuditResult(title, odd), audit]), weights
