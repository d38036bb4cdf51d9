"""Runs a .tflite in other runtimes, signature by signature, as the LiteRT interpreter does.

Each runtime is opened as an object with the interpreter's ``get_signature_runner``. The steps,
checks and errors of ``backends.tflite`` therefore serve all of them. Nothing here imports torch,
and TensorFlow is imported only where it is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeverify.backends import compiled_model, tflite
from edgeverify.backends.interpreter import RESOLVERS
from edgeverify.backends.packing import choose_packing, require_memory
from edgeverify.core.case import Case
from edgeverify.core.errors import ArtifactError
from edgeverify.core.quiet import quiet
from edgeverify.core.trace import Trace


def run(
    path: Path,
    case: Case,
    runtime: str,
    setup: tflite.Setup | None = None,
    *,
    instrumented: Path | None = None,
) -> Trace:
    """Runs every step of ``case`` in a runtime other than the LiteRT interpreter.

    Args:
        path: the file.
        case: the steps and the kernels; each runtime has the kernels under the same names.
        runtime: ``compiled_model`` (``ai_edge_litert.compiled_model.CompiledModel``) or
            ``tf_lite`` (TensorFlow's ``tf.lite.Interpreter``).
        setup, instrumented: as for ``tflite.run``; the opener is the runtime's.

    Returns:
        Logits (B, T, V) and caches (B, T, N, H) of each step; also the inner taps, if there is
        an instrumented copy.

    Raises:
        ArtifactError: as for ``tflite.run``.
    """
    setup = replace(setup or tflite.Setup(), opener=OPENERS[runtime])
    trace = tflite.run(path, case, setup, instrumented=instrumented)
    trace.provenance["backend"] = runtime
    return trace


def open_compiled_model(path: Path, *, kernel: str, num_threads: int) -> Any:
    """Opens the file in ``CompiledModel``, on the CPU, with its packed weights where they fit.

    Raises:
        ArtifactError: the file cannot be opened, or its packed weights fit nowhere.
    """
    on_disk = kernel == "xnnpack" and not choose_packing(path).in_memory
    return compiled_model.open_file(
        path, kernel=kernel, num_threads=num_threads, packed_on_disk=on_disk
    )


def open_tf_lite(path: Path, *, kernel: str, num_threads: int) -> Any:
    """Opens the file in TensorFlow's interpreter, which has the LiteRT interpreter's methods.

    Raises:
        ArtifactError: the file cannot be opened, or its packed weights do not fit in memory.
    """
    if kernel == "xnnpack":
        require_memory(path)
    try:
        with quiet(show=False), warnings.catch_warnings():
            # TensorFlow warns that LiteRT replaces this interpreter. We know: both are compared.
            warnings.simplefilter("ignore")
            import tensorflow as tf

            resolver = tf.lite.experimental.OpResolverType[RESOLVERS[kernel].name]
            return tf.lite.Interpreter(
                str(path), num_threads=num_threads, experimental_op_resolver_type=resolver
            )
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"tf.lite.Interpreter cannot open it ({error})",
            where=path,
            expected="a .tflite that this version of the runtime reads",
            fix="convert the model again, or update tensorflow",
        ) from error


OPENERS: Mapping[str, Callable[..., Any]] = {
    "compiled_model": open_compiled_model,
    "tf_lite": open_tf_lite,
}
