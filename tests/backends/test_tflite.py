"""Running a .tflite: what it is fed with, what is recorded, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeverify.backends import tflite
from edgeverify.core import taps
from edgeverify.core.case import Case, Step
from edgeverify.core.errors import ArtifactError
from edgeverify.core.masks import mask
from edgeverify.core.trace import Trace
from edgeverify.litert.flatbuffer import ModelFile, instrument, locate_taps
from edgeverify.litert.flatbuffer.instrument import instrumented_copy

PATCHED = 2  # the block whose weights are changed below; there are blocks before and after it


def differing(a: Trace, b: Trace) -> set[str]:
    """Taps, without their steps, that are not bitwise the same."""
    assert list(a) == list(b)
    return {taps.split(key)[1] for key in a if a[key].tobytes() != b[key].tobytes()}


def patch_weight(source: Path, target: Path, tap: str) -> None:
    """Copies a file and doubles one weight of the projection that makes ``tap``."""
    file = ModelFile(source)
    graph = file.graph("decode")
    op = graph.producer[locate_taps(file, "decode").taps[tap].tensor]
    weight = next(t for t in op.inputs if graph.is_constant(t))
    span = file.buffer_span(graph.raw.tensors[weight].buffer)
    assert span is not None
    shutil.copyfile(source, target)
    values = np.memmap(target, np.float32, "r+", offset=span[0], shape=(span[1] // 4,))
    values[7] *= 2
    values.flush()


@pytest.fixture
def made(converted: Callable[..., Any]) -> Any:
    return converted("gemma2", "transposed")


@pytest.mark.slow
def test_taps_are_read_without_changing_what_is_computed(made: Any, tmp_path: Path) -> None:
    plain = tflite.run(made.path, made.case)
    again = tflite.run(made.path, made.case, setup=tflite.Setup(num_threads=1))
    whole, _ = tflite.run_file(made.path, made.case, setup=tflite.Setup(cache=tmp_path))
    assert differing(plain, again) == set()
    assert {taps.split(key)[1] for key in plain} == {
        t for t in taps.standard_taps(made.num_blocks) if taps.is_outer(t)
    }
    assert all(plain[key].tobytes() == whole[key].tobytes() for key in plain)
    assert plain.unavailable.keys() == whole.arrays.keys() - plain.arrays.keys()
    assert set(plain.unavailable.values()) == {"inner taps need an instrumented copy of the file"}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["builtin", "reference"])
def test_other_kernels_agree_to_rounding(made: Any, kernel: str, tmp_path: Path) -> None:
    other, _ = tflite.run_file(made.path, replace(made.case, kernel=kernel))
    xnnpack, _ = tflite.run_file(made.path, made.case)
    assert other.unavailable == xnnpack.unavailable == {}
    assert other.provenance["kernel"] == kernel
    for key in xnnpack:
        np.testing.assert_allclose(other[key], xnnpack[key], rtol=0, atol=1e-5 * np.ptp(other[key]))
    assert differing(other, xnnpack)  # the kernels really are others


@pytest.mark.slow
def test_only_real_rows_are_recorded(made: Any) -> None:
    trace = tflite.run(made.path, made.case)
    padded = next(s for s in made.case.steps if len(s.tokens) < s.length)
    assert trace[f"{padded.name}/logits"].shape[:2] == (1, len(padded.tokens))
    for step in made.case.steps:
        assert trace[f"{step.name}/kv.0.k"].shape[1] == step.end
        assert trace[f"{step.name}/kv.0.v"].shape == trace[f"{step.name}/kv.0.k"].shape


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["default", "transposed"])
@pytest.mark.parametrize("family", ["gemma2", "openelm"])
def test_fed_with_its_own_activations_an_isolated_file_changes_nothing(
    converted: Callable[..., Any], family: str, layout: str, tmp_path: Path
) -> None:
    made = converted(family, layout)
    whole, none = tflite.run_file(made.path, made.case)
    assert none is None
    _, alone = tflite.run_file(made.path, made.case, oracle=whole)
    assert alone is not None
    assert alone.unavailable == {}
    # A pad row's activations are not in the trace, but no real row depends on them.
    assert differing(whole, alone) == set()


@pytest.mark.slow
@pytest.mark.parametrize("tap", ["ff.out", "attn.out"])
def test_isolation_names_the_faulty_block_alone(made: Any, tap: str, tmp_path: Path) -> None:
    faulty = tmp_path / "faulty.tflite"
    patch_weight(made.path, faulty, taps.block(PATCHED, tap))
    right, _ = tflite.run_file(made.path, made.case)
    _, right_alone = tflite.run_file(made.path, made.case, oracle=right)
    wrong, wrong_alone = tflite.run_file(faulty, made.case, oracle=right)
    spread = differing(right, wrong)
    assert {taps.block(PATCHED, tap), taps.block(PATCHED + 1, "attn.q"), taps.LOGITS} <= spread
    assert right_alone is not None
    assert wrong_alone is not None
    named = differing(right_alone, wrong_alone)
    assert {taps.block(PATCHED, tap), taps.block(PATCHED, "out")} <= named
    assert {taps.block_index(t) for t in named} == {PATCHED}


@pytest.mark.slow
def test_a_block_whose_input_was_not_found_is_not_taken_for_isolated(
    made: Any, tmp_path: Path
) -> None:
    file, copy = ModelFile(made.path), tmp_path / "copy.tflite"
    located = {name: locate_taps(file, name) for name in file.signatures}
    for found in located.values():
        for block in (PATCHED, made.num_blocks - 1):
            del found.taps[taps.block(block, "out")]
    instrument(made.path, copy, located, isolate=True)
    whole, _ = tflite.run_file(made.path, made.case)
    alone = tflite.run(made.path, made.case, instrumented=copy, inject=whole.arrays)
    parts = {taps.block_index(taps.split(key)[1]) for key in alone}
    assert PATCHED + 1 not in parts
    assert {PATCHED - 1, PATCHED} <= parts
    reason = f"not possible: blocks.{PATCHED}.out was not found in the file"
    assert alone.unavailable[f"decode.0/{taps.block(PATCHED + 1, 'attn.q')}"] == reason
    assert alone.unavailable[f"decode.0/{taps.kv(PATCHED + 1, 'k')}"] == reason
    assert f"decode.0/{taps.LOGITS}" in alone.unavailable


@pytest.mark.slow
@pytest.mark.parametrize("isolate", [False, True])
def test_of_a_large_file_s_copy_the_table_alone_is_kept(
    made: Any, isolate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, plain = tmp_path / "own.tflite", tmp_path / "plain.tflite"
    shutil.copyfile(made.path, own)
    instrument(own, plain, isolate=isolate)
    # The package has a function of the same name.
    module = sys.modules["edgeverify.litert.flatbuffer.instrument"]
    monkeypatch.setattr(module, "LARGEST_KEPT_COPY", 0)
    copies = []
    for _ in range(2):
        with instrumented_copy(own, isolate=isolate, root=tmp_path / "cache") as copy:
            copies.append(copy.read_bytes())
        assert not copy.exists()
        # The second time nothing is parsed.
        monkeypatch.setattr(module, "instrumented", None)
    assert copies == [plain.read_bytes()] * 2
    (kept,) = (tmp_path / "cache" / "instrumented").glob("[!.]*")
    assert kept.stat().st_size < own.stat().st_size // 2


@pytest.mark.slow
def test_taps_of_a_copy_that_computes_something_else_are_unchecked(
    made: Any, tmp_path: Path
) -> None:
    faulty, copy = tmp_path / "faulty.tflite", tmp_path / "copy.tflite"
    patch_weight(made.path, faulty, taps.block(PATCHED, "ff.out"))
    instrument(faulty, copy)
    plain = tflite.run(made.path, made.case)
    trace = tflite.run(made.path, made.case, instrumented=copy)
    assert differing(plain, trace) == set()  # logits and caches are the untouched file's
    assert trace.unavailable.keys() == plain.unavailable.keys()
    assert trace.unavailable["prefill.0/blocks.0.attn.q"].startswith("reading inner taps changed")


@pytest.mark.slow
def test_a_step_past_the_cache_end_is_refused_before_it_runs(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = made.case.steps[-1]
    rows = made.case.kv_cache_len
    fits = replace(last, start=rows - 1)
    over = Step("prefill.9", "prefill_4", 4, rows - 3, (1, 2))  # the pads alone are too many
    tflite.run(made.path, replace(made.case, steps=(fits,)))
    monkeypatch.setattr(tflite, "call", lambda *_, **__: pytest.fail("the runtime was called"))
    with pytest.raises(ArtifactError) as caught:
        tflite.run(made.path, replace(made.case, steps=(over,)))
    assert caught.value.what == (
        "step prefill.9 writes up to row 41 of a KV cache of 40 "
        "(the runtime would overwrite older rows instead of failing)"
    )


@pytest.mark.slow
def test_a_file_that_does_not_fit_the_case_is_refused(made: Any, tmp_path: Path) -> None:
    def run(**changes: Any) -> None:
        tflite.run(made.path, replace(made.case, **changes))

    with pytest.raises(ArtifactError, match=r"has 2 rows in the default layout; expected 40"):
        run(kv_layout="default")
    step = Step("prefill.0", "prefill_5", 5, 0, (1,))
    with pytest.raises(ArtifactError, match=r"'prefill_5'; expected one of .*decode.*convert"):
        run(steps=(step,))
    with pytest.raises(ArtifactError, match=r"takes other inputs .*mask_global: no input"):
        tflite.run(made.path, replace(made.case, mask_as_input=True))
    with pytest.raises(ArtifactError, match="its blocks cannot be fed one by one"):
        tflite.run(made.path, made.case, instrumented=made.path, inject={})


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(b"nothing of the kind")
    case = Case("m", "tiny", "default", (4,), 8, (Step("decode.0", "decode", 1, 0, (1,)),))
    with pytest.raises(ArtifactError, match=r"cannot be read as a \.tflite"):
        tflite.run(path, case)


def test_masks_are_those_of_the_original() -> None:
    step = Step("prefill.1", "prefill_4", 4, 3, (1, 2, 3, 4))
    case = Case("m", "tiny", "default", (4,), 8, (step,))
    for kind, window in (("global", None), ("local", 2)):
        array = mask(kind, step, replace(case, window=window))
        assert array.shape == (1, 1, 4, 8)
        assert array.dtype == np.float32
        for row in range(4):
            position = step.start + row
            seen = {j for j in range(8) if array[0, 0, row, j] == 0}
            assert seen == set(range(0 if window is None else position - 1, position + 1))
            assert all(array[0, 0, row, j] == -np.inf for j in set(range(8)) - seen)
    with pytest.raises(ValueError, match="a local mask needs a window"):
        mask("local", step, case)


def test_it_never_imports_torch() -> None:
    code = (
        "import sys, edgeverify.backends.tflite; "
        "assert not {'torch', 'tensorflow', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
