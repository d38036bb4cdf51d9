"""Opens a .tflite in the LiteRT interpreter and calls its signatures.

Nothing here imports torch, so that it also runs on a device host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeverify.backends import compiled_model
from edgeverify.backends.packing import choose_packing, require_memory
from edgeverify.core.case import Case, Step
from edgeverify.core.errors import ArtifactError
from edgeverify.core.quiet import quiet

RESOLVERS = {
    "xnnpack": OpResolverType.BUILTIN,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}


# The axis order that turns a cache into (B, T, N, H), by layout, for K and V.
CACHE_ORDER = {
    "default": {"k": (0, 1, 2, 3), "v": (0, 1, 2, 3)},
    "transposed": {"k": (0, 2, 1, 3), "v": (0, 3, 1, 2)},
}


def choose_opener(
    path: Path, kernel: str, memory_budget: int | None = None, *, own: bool = False
) -> tuple[Callable[..., Any], str]:
    """Chooses how to open a file and its copies, from the size of XNNPACK's packed weights.

    Args:
        path: the file.
        kernel: ``xnnpack``, ``builtin`` or ``reference``.
        memory_budget: bytes that the process may use; the available memory if None.
        own: as for ``choose_packing``.

    Returns:
        The opener, and the reason if memory is too short for the packed weights. The opener is
        ``open_file``, or one that opens a ``CompiledModel`` whose packed weights are on the disk,
        which computes the same bits (a test checks this).

    Raises:
        NoRoomError: the packed weights fit nowhere.
    """
    if kernel != "xnnpack" or (chosen := choose_packing(path, memory_budget, own=own)).in_memory:
        return open_file, ""
    told = "" if chosen.fits_memory else str(chosen)
    return partial(compiled_model.open_file, packed_on_disk=True), told


def open_fitting(path: Path, *, kernel: str, num_threads: int) -> Any:
    """Opens the file with the opener that ``choose_opener`` chooses.

    Raises:
        ArtifactError: the file cannot be opened, or its packed weights fit nowhere.
    """
    opener, _ = choose_opener(path, kernel)
    return opener(path, kernel=kernel, num_threads=num_threads)


def open_file(path: Path, *, kernel: str, num_threads: int) -> Interpreter:
    """Returns an interpreter of ``path`` with the given kernels.

    Raises:
        ArtifactError: the file cannot be opened, or its packed weights do not fit in memory.
    """
    if kernel == "xnnpack":
        require_memory(path)
    try:
        with quiet(show=False):
            return Interpreter(
                str(path),
                num_threads=num_threads,
                experimental_op_resolver_type=RESOLVERS[kernel],
            )
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"the runtime cannot open it ({error})",
            where=path,
            expected="a whole .tflite file that this version of ai-edge-litert reads",
            fix="convert the model again, or update ai-edge-litert",
        ) from error


def runner_of(interpreter: Any, path: Path, signature: str) -> Any:
    """Returns the runner of a signature.

    Raises:
        ArtifactError: the file has no such signature.
    """
    try:
        return interpreter.get_signature_runner(signature)
    except ValueError as error:
        raise ArtifactError(
            f"has no signature {signature!r}",
            where=path,
            expected=f"one of {', '.join(interpreter.get_signature_list()) or '(none at all)'}",
            fix="convert the model again with the prefill lengths of the case",
        ) from error


def check_room(path: Path, case: Case, step: Step, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses a step that the runtime would accept and silently compute wrongly.

    Raises:
        ArtifactError: the file's cache is not the case's, or the step ends past its last row.
    """
    rows = shapes["kv_cache_k_0"][CACHE_ORDER[case.kv_layout]["k"][1]]
    if rows != case.kv_cache_len:
        raise ArtifactError(
            f"its KV cache has {rows} rows in the {case.kv_layout} layout",
            where=path,
            expected=f"{case.kv_cache_len}, as in the case",
            fix="convert the model again, with the case's KV layout and cache length",
        )
    if step.start + step.length > rows:
        raise ArtifactError(
            f"step {step.name} writes up to row {step.start + step.length} of a KV cache of {rows}"
            " (the runtime would overwrite older rows instead of failing)",
            where=path,
            expected=f"at most {rows} rows",
            fix="lengthen the cache, or shorten the prompt or the decode steps",
        )


def call(
    runner: Any,
    path: Path,
    step: Step,
    inputs: dict[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    first: bool = False,
) -> dict[str, np.ndarray]:
    """Calls a signature with exactly the inputs it takes.

    Args:
        runner: from ``runner_of``.
        path, step: named in errors.
        inputs: by name.
        shapes: shapes of the signature's inputs, by name.
        first: whether this is the interpreter's first call, which announces the delegate.

    Returns:
        The outputs, by name.

    Raises:
        ArtifactError: the inputs do not fit the signature, or the runtime failed.
    """
    given = {name: value.shape for name, value in inputs.items()}
    if given != dict(shapes):
        wrong = sorted(n for n in given.keys() | shapes.keys() if given.get(n) != shapes.get(n))
        listed = ", ".join(f"{n}: {shapes.get(n, 'no input')}" for n in wrong[:4])
        raise ArtifactError(
            f"signature {step.signature!r} takes other inputs than the case gives ({listed})",
            where=path,
            expected=", ".join(f"{n}: {given.get(n, 'no input')}" for n in wrong[:4]),
            fix="convert the model again for this case",
        )
    try:
        # The first call of an interpreter announces the delegate on standard error.
        with quiet(first, show=False):
            return runner(**inputs)
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"the runtime failed at step {step.name} ({error})",
            where=path,
            expected=f"signature {step.signature!r} to run",
            fix="try another --kernel; if that passes, report it to LiteRT",
        ) from error
