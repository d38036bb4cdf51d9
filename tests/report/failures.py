"""Ten and more typical failures of small ports, for tests of what a person reads of them.

A port is wrong in one known way, or a file is changed once it is made. All is seeded.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgeverify_models as models
from edgeverify.legs import line
from edgeverify.legs.quantization import check as quantization
from edgeverify.litert.flatbuffer import ModelFile, locate_taps
from edgeverify.litert.flatbuffer.weights import find_weights
from edgeverify.suites.selftest.faults import catalogue
from edgeverify.suites.selftest.faults.port_changes import with_config, with_scaled
from edgeverify_models.port import Port
from tests import variants

RECIPE = "dynamic_int4_block32"


@dataclass(frozen=True)
class Failure:
    """One typical failure.

    Attributes:
        port: makes the port.
        options: of ``edgeverify check``, beside the port.
        file: changes the converted float file: source, target.
        quantized: likewise, the quantized one.
    """

    port: Callable[[], Port]
    options: tuple[str, ...] = ()
    file: Callable[[Path, Path], None] | None = None
    quantized: Callable[[Path, Path], None] | None = None


def _faulty(name: str, port: str) -> Callable[[], Port]:
    return lambda: variants.faulty(name, port)


def _right(port: str) -> Callable[[], Port]:
    return lambda: models.load(port)


def _edit(name: str) -> Callable[[Path, Path], None]:
    edit = catalogue.find(name).file
    assert edit is not None
    return edit


def _double_a_scale(source: Path, target: Path) -> None:
    """Doubles the scale of row 5's second block in the down projection of block 1."""
    shutil.copyfile(source, target)
    file = ModelFile(target)
    graph = file.graph("decode")
    weights = find_weights(file, "decode", locate_taps(file, "decode"))
    tensor = weights.tensors["transformer_blocks.1.ff.w2.weight"]
    scales = graph.raw.tensors[tensor].quantization.details.scales
    span = file.buffer_span(graph.raw.tensors[scales].buffer)
    assert span is not None
    held = np.memmap(target, np.float16, "r+", offset=span[0], shape=(span[1] // 2,))
    held[5 * (graph.shape(tensor)[1] // 32) + 1] *= 2
    held.flush()


FAILURES: dict[str, Failure] = {
    "softmax_scale": Failure(
        lambda: with_scaled(models.load("gemma2"), 1.02, "query_pre_attn_scalar")
    ),
    "rope_theta": Failure(_faulty("rope_base_of_the_library", "smollm")),
    "norm_eps": Failure(lambda: with_config(models.load("tinyllama"), rms_norm_eps=1e-6)),
    "weight_one_ulp": Failure(_faulty("weight_one_ulp_off", "tinyllama")),
    "activation": Failure(_faulty("exact_gelu_for_tanh_gelu", "gemma2")),
    "window": Failure(_faulty("window_one_longer", "gemma2")),
    "other_layer": Failure(_faulty("shard_read_twice", "tinyllama")),
    "k_and_v": Failure(_faulty("k_and_v_names_exchanged", "tinyllama")),
    "converter": Failure(_right("tinyllama"), file=_edit("file_rope_halves_exchanged")),
    "quantization": Failure(_right("tinyllama"), ("--recipe", RECIPE), quantized=_double_a_scale),
    "taps_not_read": Failure(variants.final_norm_past_its_hooks),
    "memory_budget": Failure(_right("tinyllama"), ("--memory-budget", "1MiB")),
    "cause_not_named": Failure(_faulty("mask_of_the_first_chunk_for_all", "tinyllama")),
}


def port_file(name: str) -> str:
    """What ``my_port.py`` of a failure holds."""
    return f"from tests.report.failures import FAILURES\nPORT = FAILURES[{name!r}].port()\n"


def install(failure: Failure, patch: Any, folder: Path) -> None:
    """Has the check use changed files: ``patch(module, name, value)``."""

    def changed(module: Any, name: str, edit: Callable[[Path, Path], None]) -> None:
        right = getattr(module, name)

        def make(*args: Any, **kwargs: Any) -> Path:
            source = right(*args, **kwargs)
            target = folder / f"changed-{source.name}"
            edit(source, target)
            return target

        patch(module, name, make)

    if failure.file is not None:
        changed(line, "converted", failure.file)
    if failure.quantized is not None:
        changed(quantization, "quantized", failure.quantized)
