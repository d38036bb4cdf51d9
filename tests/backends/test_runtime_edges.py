"""What the runtime and the converter do at the edges, as of LiteRT 2.3 and litert-torch 0.10.

Each is known behaviour that a caller has to keep away from; the sessions do. A test that fails here
says that a new version behaves otherwise: then change ``docs/invariants.md`` with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from litert_torch.generative.layers import kv_cache as kv_utils

from edgeverify.backends.interpreter import open_file
from edgeverify.core.case import KERNELS
from edgeverify.core.errors import ArtifactError
from edgeverify.legs.conversion import converted
from edgeverify.legs.run import fitting_threads, prepare
from edgeverify.legs.selectors import Selectors

pytestmark = pytest.mark.slow
Runner = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def files() -> Callable[..., Path]:
    """Converts tinyllama with given selectors; the default one is in the cache of other tests."""

    def make(**selectors: Any) -> Path:
        run, _ = prepare("tinyllama", Selectors.of(**selectors), verbose=False, progress=None)
        with fitting_threads(run):
            return converted(run)

    return make


def runner(path: Path, signature: str, kernel: str) -> tuple[Any, dict[str, np.ndarray]]:
    """The signature's runner, and inputs of zeros, of ones for the cache."""
    interpreter = open_file(path, kernel=kernel, num_threads=1)
    found = interpreter.get_signature_runner(signature)
    inputs = {}
    for name, detail in found.get_input_details().items():
        make = np.ones if "kv_cache" in name else np.zeros
        inputs[name] = make(detail["shape"], detail["dtype"])
    # The runner does not keep its interpreter alive.
    return (interpreter, found), inputs


def written_rows(outputs: dict[str, np.ndarray]) -> list[int]:
    """Rows of block 0's K, (1, S, N, H), that are no longer ones."""
    cache = outputs["kv_cache_k_0"]
    return [int(row) for row in np.flatnonzero((cache != 1).any(axis=(0, 2, 3)))]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_step_past_the_end_is_moved_back_over_older_rows(
    kernel: str, files: Callable[..., Path]
) -> None:
    """Without a word, where masks are inputs."""
    (_, run), inputs = runner(files(mask_as_input=True), "decode", kernel)
    rows = inputs["kv_cache_k_0"].shape[1]
    inputs["input_pos"] = np.array([rows], np.int32)
    assert written_rows(run(**inputs)) == [rows - 1]
    (_, run), inputs = runner(files(mask_as_input=True), "prefill_16", kernel)
    inputs["input_pos"] = np.arange(rows - 5, rows + 11, dtype=np.int32)
    assert written_rows(run(**inputs)) == list(range(rows - 16, rows))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_step_past_the_end_of_masks_built_inside_is_refused_by_the_runtime(
    kernel: str, files: Callable[..., Path]
) -> None:
    """Only because the mask has as many rows as the cache; a longer one would hide it."""
    (_, run), inputs = runner(files(), "decode", kernel)
    inputs["input_pos"] = np.array([inputs["kv_cache_k_0"].shape[1]], np.int32)
    with pytest.raises(RuntimeError, match="out of bounds"):
        run(**inputs)


def test_eager_mode_refuses_what_the_file_moves_back() -> None:
    run, _ = prepare("tinyllama", Selectors.of(), verbose=False, progress=None)
    model, rows = run.model(), run.case.kv_cache_len
    cache = kv_utils.KVCache.from_model_config(rows, model.config)  # type: ignore[arg-type]
    with pytest.raises((IndexError, RuntimeError)):
        model(
            tokens=torch.zeros((1, 1), dtype=torch.int),
            input_pos=torch.tensor([rows], dtype=torch.int),
            kv_cache=cache,
        )


@pytest.mark.parametrize("kernel", KERNELS)
def test_only_the_first_position_places_the_rows(kernel: str, files: Callable[..., Path]) -> None:
    """Pads at position 0 do not go to row 0: they stand after the real rows."""
    (_, run), inputs = runner(files(), "prefill_16", kernel)
    inputs["input_pos"] = np.array([40, 41, 42] + [0] * 13, np.int32)
    assert written_rows(run(**inputs)) == list(range(40, 56))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_fully_masked_row_is_nan_with_xnnpack_only(
    kernel: str, files: Callable[..., Path]
) -> None:
    (_, run), inputs = runner(files(mask_as_input=True), "decode", kernel)
    inputs["mask"] = np.full_like(inputs["mask"], -np.inf)
    assert np.isnan(run(**inputs)["logits"]).all() == (kernel == "xnnpack")


@pytest.mark.parametrize("kernel", KERNELS)
def test_unwritten_rows_may_hold_large_values_but_none_whose_products_overflow(
    kernel: str, files: Callable[..., Path]
) -> None:
    """A score of inf + -inf is NaN in XNNPACK."""
    (_, run), inputs = runner(files(), "decode", kernel)
    wanted = run(**inputs)["logits"]
    signs = np.random.default_rng(0).choice((-1, 1), inputs["kv_cache_k_0"][:, 1:].shape)
    inputs["kv_cache_k_0"][:, 1:] = (signs * 1e30).astype(np.float32)
    assert run(**inputs)["logits"].tobytes() == wanted.tobytes()
    inputs["kv_cache_k_0"][:, 1:] = (signs * 3e38).astype(np.float32)
    assert np.isnan(run(**inputs)["logits"]).all() == (kernel == "xnnpack")


def test_a_batch_in_the_transposed_layout_cannot_be_converted() -> None:
    run, _ = prepare(
        "tinyllama", Selectors.of(kv_layout="transposed"), verbose=False, progress=None
    )
    run = run.of_case(replace(run.case, decode_batch=2))
    with pytest.raises(ArtifactError, match="einsum"):
        converted(run)
