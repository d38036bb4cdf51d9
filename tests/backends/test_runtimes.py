"""CompiledModel and TensorFlow's interpreter, call by call, beside the LiteRT interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeverify.backends import runtimes, tflite
from edgeverify.core import taps
from edgeverify.core.errors import ArtifactError
from edgeverify.litert.flatbuffer.instrument import instrumented_copy

pytestmark = pytest.mark.slow


@pytest.fixture
def made(converted: Callable[..., Any]) -> Any:
    return converted("gemma2", "transposed", mask_as_input=True)


def interpreted(made: Any, kernel: str) -> Any:
    return tflite.run(made.path, replace(made.case, kernel=kernel))


@pytest.mark.parametrize(
    ("kernel", "same"), [("xnnpack", "xnnpack"), ("builtin", "builtin"), ("reference", "builtin")]
)
def test_compiled_model_is_bitwise_the_interpreter(kernel: str, same: str, made: Any) -> None:
    """With the kernels of ai-edge-litert 2.3; asked for reference kernels it takes the built-in."""
    case = replace(made.case, kernel=kernel)
    trace = runtimes.run(made.path, case, "compiled_model")
    other = interpreted(made, same)
    assert list(trace) == list(other)
    assert trace.provenance["backend"] == "compiled_model"
    assert [key for key in trace if trace[key].tobytes() != other[key].tobytes()] == []


def test_tensorflow_gives_logits_and_caches_of_every_step(made: Any) -> None:
    trace = runtimes.run(made.path, made.case, "tf_lite")
    other = interpreted(made, "xnnpack")
    assert list(trace) == list(other)
    assert all(taps.is_outer(taps.split(key)[1]) for key in trace)
    for key in trace:
        scale = np.abs(other[key]).max()
        assert np.abs(trace[key] - other[key]).max() < 1e-5 * scale, key


@pytest.mark.parametrize("runtime", runtimes.OPENERS)
def test_an_instrumented_copy_gives_inner_taps(runtime: str, made: Any) -> None:
    with instrumented_copy(made.path) as copy:
        trace = runtimes.run(made.path, made.case, runtime, instrumented=copy)
    assert {"prefill.0/blocks.0.attn.q", "decode.1/final_norm"} <= set(trace)


@pytest.mark.parametrize("runtime", runtimes.OPENERS)
def test_a_file_that_is_none_is_refused(runtime: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(b"no model at all" * 100)
    with pytest.raises(ArtifactError) as error:
        runtimes.OPENERS[runtime](path, kernel="builtin", num_threads=1)
    assert "cannot open it" in error.value.what
    assert error.value.where == str(path)


@pytest.mark.parametrize("runtime", runtimes.OPENERS)
def test_a_signature_that_is_missing_is_named(runtime: str, made: Any) -> None:
    steps = tuple(
        replace(step, signature="prefill_5") if step.signature == "prefill_4" else step
        for step in made.case.steps
    )
    with pytest.raises(ArtifactError, match="has no signature 'prefill_5'"):
        runtimes.run(made.path, replace(made.case, steps=steps), runtime)
