"""All invariants hold for all registered ports, on every implementation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeverify.core.compare import thresholds
from edgeverify.core.results import NOT_APPLICABLE, PASS
from edgeverify.legs.selectors import Selectors
from edgeverify.suites.invariants import INVARIANTS, reproduce
from edgeverify.suites.invariants.__main__ import MEASURED, table
from edgeverify.suites.invariants.examination import Examination, examination
from edgeverify.suites.invariants.pairs import cells
from edgeverify_models import CATALOGUE
from tests.matrices import each_port
from tests.suites.invariants.conftest import Examine

ON_PYTORCH = ("reference", "reauthored")
FILES = ("tflite-xnnpack", "tflite-builtin")


def assert_all_hold(examination: Examination, implementations: tuple[str, ...]) -> None:
    """What does not apply: a share of RoPE where all is rotated, a batch where there is none."""
    asked = [pair for pair in cells(Selectors.of()) if pair[1] in implementations]
    results = [examination.examine(*pair) for pair in asked]
    odd = [f"{r.invariant} on {r.implementation}: {r.reason}" for r in results if r.outcome != PASS]
    left = {(r.invariant, r.implementation) for r in results if r.outcome == NOT_APPLICABLE}
    expected = {("batch.rows", name) for name in FILES}
    if examination.model != "phi2":
        expected |= {("rope.share", name) for name in ON_PYTORCH}
    assert left == {pair for pair in expected if pair[1] in implementations}
    assert len(odd) == len(left), odd
    assert all(result.examples > 0 for result in results if result.outcome == PASS)


@pytest.mark.slow
@pytest.mark.parametrize("model", CATALOGUE)
def test_all_hold_on_pytorch(model: str, under_examination: Examine) -> None:
    assert_all_hold(under_examination(model), ON_PYTORCH)


@pytest.mark.slow
@pytest.mark.parametrize("model", each_port(CATALOGUE))
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


def test_a_failure_can_be_reproduced_by_the_command_it_shows(
    tmp_path: Path,
) -> None:
    port = tmp_path / "port.py"
    port.write_text(
        "from tests.suites.invariants.broken import window_off_by\nPORT = window_off_by(1)\n"
    )
    found = examination(f"{port}:PORT", Selectors.of(profile="dev"))
    result = found.examine("mask.window", "reauthored")
    code = "from edgeverify.suites.invariants import reproduce\nreproduce("
    with pytest.raises(SystemExit) as raised:
        exec(code + result.reproduction.split("\nreproduce(")[1].removesuffix("EOF"))
    assert raised.value.code == f"mask.window on reauthored: {result.reason}"


def test_an_invariant_that_holds_is_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"tokens": (0, 1), "plan": (("prefill_16", 2),), "at": 1, "token": 3}
    reproduce("tinyllama", "mask.causal", "reauthored", arguments=arguments)
    assert capsys.readouterr().out == "mask.causal holds on reauthored\n"


def test_an_unknown_invariant_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        reproduce("tinyllama", "mask.casual", "reauthored", arguments={})
    assert raised.value.code == 2
    assert "did you mean 'mask.causal'" in capsys.readouterr().err


def test_the_table_has_a_row_for_every_invariant() -> None:
    text = table(json.loads(MEASURED.read_text()))
    assert [name for name in INVARIANTS if f"| {name} |" not in text] == []
    assert "**" not in text
