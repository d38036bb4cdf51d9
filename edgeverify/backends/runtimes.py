"""Other runtimes that run a .tflite as the LiteRT interpreter does: signature by signature.

Each is opened as something that has the interpreter's ``get_signature_runner``, so that the same
steps, checks and errors of ``backends.tflite`` serve all of them. Nothing here imports torch, and
TensorFlow is imported where it is asked for alone.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgeverify.backends import tflite
from edgeverify.case import Case
from edgeverify.errors import ArtifactError
from edgeverify.flatbuffer import ModelFile
from edgeverify.quiet import quiet
from edgeverify.trace import Trace

# The kernels' names in ``ai_edge_litert.cpu_kernel_mode.CpuKernelMode``.
KERNEL_MODES = {"xnnpack": "DELEGATE", "builtin": "BUILTIN", "reference": "REFERENCE"}


def run(
    path: Path,
    case: Case,
    runtime: str,
    *,
    mask_kinds: Sequence[str] = ("global",),
    window: int | None = None,
    num_threads: int | None = None,
    instrumented: Path | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Trace:
    """Runs every step of ``case`` in another runtime than the LiteRT interpreter.

    Args:
        path: the file.
        case: the steps, and the kernels, which each runtime has by the same names.
        runtime: ``compiled_model`` (``ai_edge_litert.compiled_model.CompiledModel``) or
            ``tf_lite`` (TensorFlow's ``tf.lite.Interpreter``).
        mask_kinds, window, num_threads, instrumented, tick: as for ``tflite.run``.

    Returns:
        Logits (B, T, V) and caches (B, T, N, H) of each step; the inner taps, too, where an
        instrumented copy is given.

    Raises:
        ArtifactError: as for ``tflite.run``.
    """
    trace = tflite.run(
        path,
        case,
        num_blocks=next(iter(ModelFile(path).signatures.values())).num_blocks,
        mask_kinds=mask_kinds,
        window=window,
        num_threads=num_threads,
        instrumented=instrumented,
        opener=OPENERS[runtime],
        tick=tick,
    )
    trace.provenance["backend"] = runtime
    return trace


def open_compiled_model(path: Path, *, kernel: str, num_threads: int) -> CompiledFile:
    """The file in ``CompiledModel``, on the CPU.

    Raises:
        ArtifactError: it cannot be opened, or its packed weights do not fit the memory.
    """
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.cpu_kernel_mode import CpuKernelMode
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator
    from ai_edge_litert.options import CpuOptions, Options

    if kernel == "xnnpack":
        tflite.require_memory(path)
    _hush_at_exit()
    mode = CpuKernelMode[KERNEL_MODES[kernel]]
    options = Options(HardwareAccelerator.CPU, CpuOptions(num_threads, mode))
    try:
        with quiet(show=False):
            return CompiledFile(CompiledModel.from_file(str(path), options=options))
    except (ValueError, RuntimeError) as error:
        raise _unopened(path, "CompiledModel", error) from error


def open_tf_lite(path: Path, *, kernel: str, num_threads: int) -> Any:
    """The file in TensorFlow's interpreter, which has the LiteRT interpreter's methods.

    Raises:
        ArtifactError: it cannot be opened, or its packed weights do not fit the memory.
    """
    if kernel == "xnnpack":
        tflite.require_memory(path)
    try:
        with quiet(show=False), warnings.catch_warnings():
            # That it is to be replaced by the LiteRT interpreter is known: both are compared.
            warnings.simplefilter("ignore")
            import tensorflow as tf

            resolver = tf.lite.experimental.OpResolverType[tflite.RESOLVERS[kernel].name]
            return tf.lite.Interpreter(
                str(path), num_threads=num_threads, experimental_op_resolver_type=resolver
            )
    except (ValueError, RuntimeError) as error:
        raise _unopened(path, "tf.lite.Interpreter", error) from error


OPENERS: Mapping[str, Callable[..., Any]] = {
    "compiled_model": open_compiled_model,
    "tf_lite": open_tf_lite,
}


class CompiledFile:
    """A ``CompiledModel`` with the two methods of an interpreter that ``tflite.run`` calls."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def get_signature_list(self) -> dict[str, Any]:
        """The signatures, by name."""
        return dict(self._model.get_signature_list())

    def get_signature_runner(self, signature: str) -> CompiledRunner:
        """What calls a signature.

        Raises:
            ValueError: the file has none of that name.
        """
        if signature not in self.get_signature_list():
            raise ValueError(f"no signature {signature!r}")
        return CompiledRunner(self._model, signature)


class CompiledRunner:
    """Calls one signature of a ``CompiledModel``. Its buffers are made once."""

    def __init__(self, model: Any, signature: str) -> None:
        self._model, self._signature = model, signature
        self._inputs = model.get_input_tensor_details(signature)
        self._outputs = model.get_output_tensor_details(signature)
        self._given = {n: model.create_input_buffer_by_name(signature, n) for n in self._inputs}
        self._made = {n: model.create_output_buffer_by_name(signature, n) for n in self._outputs}

    def get_input_details(self) -> dict[str, Any]:
        """Input name → its ``shape`` and ``dtype``."""
        return dict(self._inputs)

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs by name, for inputs of the signature's names and shapes."""
        for name, value in inputs.items():
            self._given[name].write(value)
        self._model.run_by_name(self._signature, self._given, self._made)
        outputs = {}
        for name, buffer in self._made.items():
            shape = tuple(self._outputs[name]["shape"])
            values = buffer.read(int(np.prod(shape)), np.dtype(self._outputs[name]["dtype"]).type)
            outputs[name] = values.reshape(shape)
        return outputs


@cache
def _hush_at_exit() -> None:
    """Keeps what CompiledModel's library writes while the process ends off the terminal.

    It tells of each accelerator that it lets go of, from a destructor that runs after Python's
    own end, and has no switch for it.
    """

    def hush() -> None:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    atexit.register(hush)


def _unopened(path: Path, runtime: str, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{runtime} cannot open it ({error})",
        where=path,
        expected="a .tflite that this version of the runtime reads",
        fix="convert the model again, or update ai-edge-litert and tensorflow",
    )
