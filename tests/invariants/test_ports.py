"""All invariants hold for all registered ports, on every implementation."""

from __future__ import annotations

import json

import pytest

from edgeverify.compare import thresholds
from edgeverify.invariants import INVARIANTS
from edgeverify.invariants.__main__ import MEASURED, table
from edgeverify.invariants.cells import cells
from edgeverify.report.model import NOT_APPLICABLE, PASS
from edgeverify.selectors import Selectors
from models import CATALOGUE
from tests.invariants.conftest import Examine

ON_PYTORCH = ("reference", "reauthored")
FILES = ("tflite-xnnpack", "tflite-builtin")


def assert_all_hold(examination: object, implementations: tuple[str, ...]) -> None:
    asked = [pair for pair in cells(Selectors.of()) if pair[1] in implementations]
    results = [examination.examine(*pair) for pair in asked]  # type: ignore[attr-defined]
    odd = [f"{r.invariant} on {r.implementation}: {r.reason}" for r in results if r.outcome != PASS]
    # A file has no batch unless it is converted with one.
    batch = [line for line in odd if line.startswith("batch.rows on tflite")]
    assert [line for line in odd if line not in batch] == []
    assert all(result.examples > 0 for result in results if result.outcome == PASS)


@pytest.mark.slow
@pytest.mark.parametrize("model", CATALOGUE)
def test_all_hold_on_pytorch(model: str, under_examination: Examine) -> None:
    assert_all_hold(under_examination(model), ON_PYTORCH)


@pytest.mark.slow
@pytest.mark.parametrize("model", CATALOGUE)
def test_all_hold_on_the_file(model: str, under_examination: Examine) -> None:
    assert_all_hold(under_examination(model), FILES)


@pytest.mark.slow
def test_rows_of_a_batch_in_a_file(under_examination: Examine) -> None:
    examination = under_examination("tinyllama", profile="nightly")
    for kernel in ("xnnpack", "builtin"):
        result = examination.examine("batch.rows", f"tflite-{kernel}")
        assert (result.outcome, result.reason) == (PASS, "")


def test_the_measured_runs_cover_all_ports_and_stay_below_the_thresholds() -> None:
    rows = json.loads(MEASURED.read_text())
    limits = thresholds("invariants")
    asked = {
        (model, invariant, implementation)
        for model in CATALOGUE
        for invariant, implementation in cells(Selectors.of())
    }
    assert asked <= {(r["model"], r["invariant"], r["implementation"]) for r in rows}
    assert {r["outcome"] for r in rows} <= {PASS, NOT_APPLICABLE}
    for ratio, limit in (("rms", limits.rms), ("row", limits.row)):
        assert 0 < max(r[ratio] or 0.0 for r in rows) < limit / 1.15


def test_the_table_has_a_row_for_every_invariant() -> None:
    text = table(json.loads(MEASURED.read_text()))
    assert [name for name in INVARIANTS if f"| {name} |" not in text] == []
    assert "**" not in text
