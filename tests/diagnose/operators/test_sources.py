"""The very operator is named: in edited files it is, in right ones none is."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

import edgeverify_models as models
from edgeverify.core.case import KV_LAYOUTS
from edgeverify.core.results import FAIL
from edgeverify.diagnose.operators.graph import FlatGraph
from edgeverify.diagnose.operators.model_values import StepValues, record
from edgeverify.diagnose.operators.sources import Source, find_sources
from edgeverify.legs import line
from edgeverify.legs.conversion import converted
from edgeverify.legs.run import fitting_threads, prepare
from edgeverify.legs.selectors import Selectors
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.suites.check import verify
from edgeverify_models import CATALOGUE
from tests import variants
from tests.diagnose.operators.catalogue import EDITS
from tests.diagnose.operators.edits import Editor

STEPS = {"prefill.0": "prefill_16", "prefill.2": "prefill_32", "decode.0": "decode"}
# An index's bounds check has no counterpart in the model, only what is chosen by it has.
AMONG_SEVERAL = {"bound_of_the_positions"}
# Named is the BROADCAST_TO that reads the reshaped tensor: the reshape moved an axis of length 1.
ONE_LATER = {"repeat_for_repeat_interleave"}


@cache
def prepared(model: str, layout: str) -> tuple[Path, dict[str, StepValues]]:
    """A tiny model's file, and what the model computes at one step of each signature."""
    selectors = Selectors.of(kv_layout=layout)
    run, _ = prepare(model, selectors, verbose=False, progress=None)
    with fitting_threads(run):
        path = converted(run)
        values = record(
            run.model(),
            run.case,
            set(STEPS),
        )
    return path, values


def sources(path: Path, model: str, layout: str, step: str) -> tuple[Source, ...]:
    graph = FlatGraph(ModelFile(path), STEPS[step])
    return find_sources(graph, prepared(model, layout)[1][step])


@pytest.mark.slow
@pytest.mark.parametrize("layout", KV_LAYOUTS)
@pytest.mark.parametrize("model", CATALOGUE)
def test_a_right_file_has_no_source(model: str, layout: str) -> None:
    path, _ = prepared(model, layout)
    for step in STEPS:
        assert sources(path, model, layout, step) == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EDITS if name not in ONE_LATER])
def test_the_edited_operators_are_named(name: str, tmp_path: Path) -> None:
    """In the first port whose graph has such an operator."""
    for model in ("tinyllama", "gemma2", "phi2"):
        path, _ = prepared(model, "default")
        editor = Editor(path, "prefill_16")
        try:
            EDITS[name](editor)
        except (IndexError, AssertionError, KeyError):
            continue
        editor.save(tmp_path / "edited.tflite")
        found = sources(tmp_path / "edited.tflite", model, "default", "prefill.0")
        if name in AMONG_SEVERAL:
            assert set(editor.edited) <= {op.place for s in found for op in s.suspects}
            assert len(found) == 1
        else:
            assert sorted(s.op.place for s in found) == sorted(editor.edited)
        return
    pytest.fail("no port has such an operator")


@pytest.mark.slow
def test_a_report_names_signature_operator_tensor_and_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = converted

    def broken(run: Any) -> Path:
        editor = Editor(right(run), "decode")
        op = editor.op("FULLY_CONNECTED", 1, module="TransformerBlock_2")
        editor.scale(op, 1, 1.5, 7)
        editor.save(tmp_path / "broken.tflite")
        return tmp_path / "broken.tflite"

    monkeypatch.setattr(line, "converted", broken)
    report = verify("tinyllama")
    assert report.legs["conversion"].outcome == FAIL
    (finding,) = [f for f in report.findings if f.id == "conversion.op"]
    assert "FULLY_CONNECTED (subgraph 2, signature decode)" in finding.message
    assert "torch module transformer_blocks.2.atten_func.output_projection:" in finding.message
    assert "its inputs agree and its output differs" in finding.message


@pytest.mark.slow
def test_the_known_fault_of_the_converter_is_placed() -> None:
    """One KV head: K's transposition is a RESHAPE in the body of each attention composite."""
    port = variants.with_hf(models.load("gemma1"), num_key_value_heads=1)
    report = verify(port, kernel="builtin")
    found = [f.message for f in report.findings if f.id == "conversion.op"]
    assert found
    assert all(" RESHAPE in the body of op " in message for message in found)
