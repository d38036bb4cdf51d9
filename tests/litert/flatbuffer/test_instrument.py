"""Finding taps in converted graphs, and writing copies that yield them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgeverify.backends import tflite
from edgeverify.core import taps
from edgeverify.core.errors import ArtifactError
from edgeverify.core.trace import Trace
from edgeverify.litert.flatbuffer import (
    INJECT,
    TAP,
    Instrumentation,
    ModelFile,
    cut_points,
    instrument,
    locate_taps,
)
from edgeverify.litert.flatbuffer.instrument import write

FAMILIES = ("tinyllama", "gemma1", "gemma2", "phi2", "openelm")
LAYOUTS = ("default", "transposed")
# Float32 rounding is 4e-7 to 6e-7 per tap (stack facts) and grows over 4 blocks; another tensor
# in a tap's place differs by more than a tenth.
TOLERANCE = 1e-5


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def assert_same_taps(trace: Trace, eager: Trace) -> None:
    assert list(trace) == list(eager)
    wrong = {
        key: (trace[key].shape, eager[key].shape)
        for key in trace
        if trace[key].shape != eager[key].shape
    }
    assert not wrong
    far = {key: difference(trace[key], eager[key]) for key in trace}
    assert {key: value for key, value in far.items() if not value < TOLERANCE} == {}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tap_of_every_step_is_the_eager_models(
    converted: Callable[..., Any], family: str, layout: str, tmp_path: Path
) -> None:
    made = converted(family, layout)
    whole, _ = tflite.run_file(made.path, made.case, setup=tflite.Setup(cache=tmp_path))
    assert whole.unavailable == {}
    assert [taps.split(k)[1] for k in whole if k.startswith("prefill.0/")] == list(
        taps.standard_taps(made.num_blocks)
    )
    assert_same_taps(whole, made.eager())


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_as_inputs(converted: Callable[..., Any], layout: str, tmp_path: Path) -> None:
    made = converted("gemma2", layout, mask_as_input=True)
    assert {"mask_global", "mask_local"} <= ModelFile(made.path).signatures["decode"].inputs.keys()
    whole, _ = tflite.run_file(made.path, made.case, setup=tflite.Setup(cache=tmp_path))
    assert whole.unavailable == {}
    assert_same_taps(whole, made.eager())


@pytest.mark.slow
def test_prefill_without_logits_leaves_out_what_is_not_computed(
    converted: Callable[..., Any], tmp_path: Path
) -> None:
    made = converted("tinyllama", "default", prefill_logits=False)
    whole, _ = tflite.run_file(made.path, made.case, setup=tflite.Setup(cache=tmp_path))
    last = made.num_blocks - 1
    dead = [taps.block(last, t) for t in ("attn.q", "attn.out", "ff_norm", "ff.out", "out")]
    prefill = {k for k in whole.unavailable if k.startswith("prefill.0/")}
    assert prefill == {f"prefill.0/{t}" for t in (*dead, taps.FINAL_NORM, taps.LOGITS)}
    assert {k for k in whole.unavailable if k.startswith("decode")} == set()
    assert "returns no logits" in whole.unavailable[f"prefill.0/{dead[0]}"]
    eager = made.eager()
    for key in whole:
        assert difference(whole[key], eager[key]) < TOLERANCE, key


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_file_tells_its_layout_and_length(converted: Callable[..., Any], layout: str) -> None:
    made = converted("tinyllama", layout)
    file = ModelFile(made.path)
    assert list(file.signatures) == ["prefill_4", "prefill_11", "decode"]
    assert file.kv_layout() == layout
    assert file.kv_cache_len() == made.case.kv_cache_len
    assert file.shape("prefill_11", "tokens") == (1, 11)
    assert file.signatures["decode"].num_blocks == made.num_blocks
    with pytest.raises(ArtifactError, match="has no signature 'prefill_5'; expected one of pre"):
        file.signature("prefill_5")


@pytest.mark.slow
def test_a_tensor_may_be_two_taps(converted: Callable[..., Any]) -> None:
    located = locate_taps(ModelFile(converted("phi2", "default").path), "prefill_4")
    found = located.taps
    assert located.missing == {}
    assert found["blocks.0.ff_norm"].tensor == found["blocks.0.attn_norm"].tensor


@pytest.mark.slow
def test_what_was_not_found_is_told(converted: Callable[..., Any]) -> None:
    """A graph whose cache writes are gone has nothing to hold on to, and says so."""
    file = ModelFile(converted("tinyllama", "default").path)
    layout = file.kv_layout()
    file.kv_layout = lambda: layout  # type: ignore[method-assign]
    signature = file.signatures["decode"]
    update = file.graph("decode").cache_update(signature, "k", 1)
    assert update is not None
    raw = file.model.subgraphs[signature.subgraph].operators[update.index]
    raw.inputs = np.array([0, *raw.inputs[1:]], np.int32)
    missing = locate_taps(file, "decode").missing
    assert missing["blocks.1.attn.k"] == "no DYNAMIC_UPDATE_SLICE writes kv_cache_k_1"
    assert set(missing) == {"blocks.1.attn.k", "blocks.1.attn.q"}


@pytest.mark.slow
def test_an_instrumented_copy_keeps_inputs_outputs_and_weights(
    converted: Callable[..., Any], tmp_path: Path
) -> None:
    source = converted("gemma2", "default").path
    target = tmp_path / "copy.tflite"
    told = instrument(source, target, isolate=True)
    assert Instrumentation.find(target) == told
    assert Instrumentation.find(source) is None
    before, after = ModelFile(source), ModelFile(target)
    for index in range(before.num_buffers):
        old, new = before.buffer_span(index), after.buffer_span(index)
        assert (old is None) == (new is None)
        if old and new:
            assert before.map[old[0] : sum(old)] == after.map[new[0] : sum(new)]
            assert after.model.buffers[index].offset % 16 == 0
    blocks = before.signatures["decode"].num_blocks
    for name, signature in before.signatures.items():
        new = after.signatures[name]
        assert set(new.inputs) - set(signature.inputs) == {INJECT + t for t in cut_points(blocks)}
        added = set(new.outputs) - set(signature.outputs)
        assert added == {TAP + t for t in told.located[name].taps}
        assert added >= {"tap:embed", "tap:final_norm", "tap:blocks.3.attn.q"}


@pytest.mark.slow
def test_an_instrumented_copy_can_be_instrumented(
    converted: Callable[..., Any], tmp_path: Path
) -> None:
    """Its weights lie outside the table, as in every file above 2 GB."""
    made = converted("tinyllama", "default")
    first, second = tmp_path / "first.tflite", tmp_path / "second.tflite"
    instrument(made.path, first)
    outside = [b for b in ModelFile(first).model.buffers if b.offset > 1]
    assert len(outside) > 10
    weights = sum(p.numel() for p in made.model.parameters()) * 4
    assert sum(b.size for b in outside) > 0.8 * weights  # a tied table is stored once
    plain = ModelFile(first)
    for definition in plain.model.signatureDefs:
        definition.outputs = [o for o in definition.outputs if not o.name.startswith(b"tap:")]
    plain.model.metadata = None
    write(plain, second)
    assert Instrumentation.find(second) is None
    large, small = tmp_path / "large.tflite", tmp_path / "small.tflite"
    instrument(second, large)
    instrument(made.path, small)
    a = tflite.run(second, made.case, instrumented=large)
    b = tflite.run(made.path, made.case, instrumented=small)
    assert a.unavailable == b.unavailable == {}
    assert list(a) == list(b)
    assert [key for key in a if a[key].tobytes() != b[key].tobytes()] == []


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(b"not a model at all, but long enough")
    with pytest.raises(ArtifactError, match=r"cannot be read as a \.tflite .*; expected a whole"):
        ModelFile(path)
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot be read"):
        ModelFile(path)
    with pytest.raises(ArtifactError, match="No such file"):
        ModelFile(tmp_path / "missing.tflite")


@pytest.mark.slow
def test_a_file_that_was_cut_short_is_refused(
    converted: Callable[..., Any], tmp_path: Path
) -> None:
    whole = tmp_path / "whole.tflite"
    instrument(converted("tinyllama", "default").path, whole)
    data = whole.read_bytes()
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match="it was cut short"):
        ModelFile(cut)
    cut.write_bytes(data[:2000])
    with pytest.raises(ArtifactError, match=r"cannot be read as a \.tflite"):
        ModelFile(cut)


@pytest.mark.slow
def test_constants_behind_the_table_are_read(
    converted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file above 2 GB has all of its buffers there, Gemma 2's final softcap among them."""
    source, target = converted("gemma2", "default").path, tmp_path / "large.tflite"
    monkeypatch.setattr(sys.modules[write.__module__], "INLINE_BYTES", -1)
    write(ModelFile(source), target)
    monkeypatch.undo()
    before, after = ModelFile(source), ModelFile(target)
    held = [
        b
        for b in schema.ModelT.InitFromObj(after._table).buffers
        if b.data is not None and len(b.data)
    ]
    assert held == [], "all of them are behind the table"
    seen = 0
    for name in before.signatures:
        old, new = before.graph(name), after.graph(name)
        for tensor in range(len(old.raw.tensors)):
            assert old.is_constant(tensor) == new.is_constant(tensor)
            span = before.buffer_span(old.raw.tensors[tensor].buffer)
            if span is not None and span[1] == 4 and tensor not in old.producer:
                seen += 1
                assert old.constant(tensor) == new.constant(tensor)
    assert seen > 3
    again = tmp_path / "again.tflite"
    write(ModelFile(target), again)
    assert any(b.data is not None for b in ModelFile(again).model.buffers)
