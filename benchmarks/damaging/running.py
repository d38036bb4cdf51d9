"""Runs every signature of any .tflite or .litertlm once, on zeros. A task of the child."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from edgeverify.backends.interpreter import open_file
from edgeverify.core.errors import ArtifactError
from edgeverify.litert.bundle.reader import model_of


def run_signatures(file: Path, kernel: str) -> dict[str, bool]:
    """Runs a file.

    Args:
        file: a .tflite or .litertlm.
        kernel: ``xnnpack``, ``builtin`` or ``reference``.

    Returns:
        Signature → whether all that it returned is finite.

    Raises:
        ArtifactError: it cannot be opened, or the runtime failed.
    """
    with model_of(file) as model:
        return _run(model, kernel)


def _run(file: Path, kernel: str) -> dict[str, bool]:
    interpreter = open_file(file, kernel=kernel, num_threads=os.cpu_count() or 1)
    try:
        return {name: _call(interpreter, name) for name in interpreter.get_signature_list()}
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"the runtime failed ({error})",
            where=file,
            expected="every signature to run on zeros",
            fix="get or convert the file again",
        ) from error


def _call(interpreter: Any, name: str) -> bool:
    runner = interpreter.get_signature_runner(name)
    details = runner.get_input_details()
    outputs = runner(**{n: np.zeros(d["shape"], d["dtype"]) for n, d in details.items()})
    return all(bool(np.isfinite(v).all()) for v in outputs.values() if v.dtype.kind == "f")
