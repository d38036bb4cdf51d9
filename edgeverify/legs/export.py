"""Writes the files that a check would run: float or quantized, with or without their tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeverify.core.progress import Progress
from edgeverify.core.store import entries
from edgeverify.legs.conversion import converted
from edgeverify.legs.run import prepare
from edgeverify.legs.runtime.stages import bundler
from edgeverify.legs.selectors import Selectors
from edgeverify.litert.bundle.writer import require_layout
from edgeverify.litert.quantize import quantized
from edgeverify.litert.recipes import FLOAT32, load_recipe
from edgeverify_models.port import Port

TFLITE, LITERTLM = "tflite", "litertlm"


def convert_model(
    port: Port | str,
    *,
    output: Path,
    format: str = TFLITE,
    verbose: bool = False,
    progress: Progress | None = None,
    **selectors: Any,
) -> list[Path]:
    """Converts a port once and writes a file for each recipe; checks nothing.

    Args:
        port: as in ``verify``.
        output: a directory; created if it does not exist.
        format: ``tflite``, or ``litertlm`` for one file that also contains the tokenizer, as
            LiteRT-LM runs it.
        verbose: as in ``verify``.
        progress: as in ``verify``.
        selectors: as in ``verify``.

    Returns:
        The files written: ``{model}_{size}_{recipe}_{layout}_ekv{rows}.{format}``, where
        ``float32`` is ``f32``.

    Raises:
        EdgeVerifyError: bad usage or bad input, or a recipe that cannot be applied; then nothing
            has been written.
    """
    chosen = Selectors.of(**selectors)
    run, tokenizer = prepare(port, chosen, verbose=verbose, progress=progress)
    case = run.case
    wrap = None
    if format == LITERTLM:
        require_layout(case.kv_layout, "--format litertlm")
        wrap = bundler(run, tokenizer, "--format litertlm")
    recipes = [load_recipe(name) for name in chosen.recipes]
    plain = converted(run)
    made = []
    for recipe in recipes:
        with run.timed("quantize"):
            made.append((recipe, quantized(plain, recipe, cache=run.cache)))
    written = []
    for recipe, file in made:
        name = "f32" if recipe.name == FLOAT32 else recipe.name
        stem = f"{case.model}_{case.size}_{name}_{case.kv_layout}_ekv{case.kv_cache_len}"
        target = output / f"{stem}.{format}"
        if wrap is None:
            entries.place(file, target)
        else:
            with wrap(file) as bundled:
                entries.place(bundled, target)
        written.append(target)
    return written
