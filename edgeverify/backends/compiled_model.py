"""Opens a .tflite in LiteRT's newer runtime, ``CompiledModel``, behind an interpreter's methods.

Only the interpreter methods that edgeverify calls are provided.

``CompiledModel`` accepts an option that the interpreter's Python class lacks: a file for the
weights that XNNPACK packs. The weights are then packed once for all signatures, written to that
file and mapped, so no copy of them needs to be in memory. The file of SmolLM2-135M (541 MB, three
signatures) then takes 0.2 GB of memory beside the mapped file, instead of 1.7 GB, and returns the
same bits.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgeverify.core.errors import ArtifactError
from edgeverify.core.quiet import quiet
from edgeverify.core.store import entries

# The kernels' names in ``ai_edge_litert.cpu_kernel_mode.CpuKernelMode``.
KERNEL_MODES = {"xnnpack": "DELEGATE", "builtin": "BUILTIN", "reference": "REFERENCE"}


def open_file(
    path: Path, *, kernel: str, num_threads: int, packed_on_disk: bool = False
) -> CompiledFile:
    """Opens the file in ``CompiledModel``, on the CPU.

    Args:
        path: the .tflite.
        kernel: ``xnnpack``, ``builtin`` or ``reference``.
        num_threads: threads of the runtime.
        packed_on_disk: XNNPACK packs the weights into a file beside ``path``. That file has no
            name after opening and disappears with the model.

    Raises:
        ArtifactError: the file cannot be opened.
    """
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.cpu_kernel_mode import CpuKernelMode
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator
    from ai_edge_litert.options import CpuOptions, Options

    _hush_at_exit()
    mode = CpuKernelMode[KERNEL_MODES[kernel]]
    # Nothing is written beside the file without need: its folder may belong to somebody else.
    place: AbstractContextManager[Path | None] = nullcontext()
    if packed_on_disk:
        place = entries.working_folder(path.parent)
    try:
        with place as folder, quiet(show=False):
            # ai-edge-litert 2.3 names the option "directory", but it takes a file.
            packed = "" if folder is None else str(folder / "packed")
            cpu = CpuOptions(num_threads, mode, xnnpack_weight_cache_path=packed)
            options = Options(HardwareAccelerator.CPU, cpu)
            return CompiledFile(CompiledModel.from_file(str(path), options=options))
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"CompiledModel cannot open it ({error})",
            where=path,
            expected="a .tflite that this version of the runtime reads",
            fix="convert the model again, or update ai-edge-litert and tensorflow",
        ) from error


class CompiledFile:
    """A ``CompiledModel`` with the two interpreter methods that ``tflite.run`` calls."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def get_signature_list(self) -> dict[str, Any]:
        """Returns the signatures, by name."""
        return dict(self._model.get_signature_list())

    def get_signature_runner(self, signature: str) -> CompiledRunner:
        """Returns a callable that runs one signature.

        Raises:
            ValueError: the file has no signature of that name.
        """
        if signature not in self.get_signature_list():
            raise ValueError(f"no signature {signature!r}")
        return CompiledRunner(self._model, signature)


class CompiledRunner:
    """Calls one signature of a ``CompiledModel``. The buffers are created once."""

    def __init__(self, model: Any, signature: str) -> None:
        self._model, self._signature = model, signature
        self._inputs = model.get_input_tensor_details(signature)
        self._outputs = model.get_output_tensor_details(signature)
        self._given = {n: model.create_input_buffer_by_name(signature, n) for n in self._inputs}
        self._made = {n: model.create_output_buffer_by_name(signature, n) for n in self._outputs}

    def get_input_details(self) -> dict[str, Any]:
        """Returns input name → its ``shape`` and ``dtype``."""
        return dict(self._inputs)

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs by name, for inputs with the signature's names and shapes."""
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
    """Silences what CompiledModel's library writes to the terminal while the process ends.

    The library reports each accelerator that it releases. It does so in a destructor that runs
    after Python itself has ended, and no switch turns it off.
    """

    def hush() -> None:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    atexit.register(hush)
