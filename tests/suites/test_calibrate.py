"""The thresholds are what the calibration in the project says, and no clean run exceeds them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeverify.core.case import KERNELS, KV_LAYOUTS
from edgeverify.core.compare import thresholds
from edgeverify.core.leg import Leg
from edgeverify.core.results import PASS
from edgeverify.suites import calibrate
from edgeverify.suites.calibrate import CleanRun
from edgeverify_models import CATALOGUE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs() -> list[CleanRun]:
    return calibrate.load_runs()


def test_the_calibration_is_broad(runs: list[CleanRun]) -> None:
    assert len(runs) >= 200
    assert {run.model for run in runs} == set(CATALOGUE)
    assert {run.kv_layout for run in runs} == set(KV_LAYOUTS)
    for leg in ("conversion", *(f"runtime:{name}" for name in calibrate.RUNTIMES)):
        assert {run.kernel for run in runs if run.leg == leg} == set(KERNELS)
        assert {run.model for run in runs if run.leg == leg} == set(CATALOGUE)
    assert len({(run.seed, run.prefill) for run in runs}) > 3
    keys = [(r.model, r.leg, r.seed, r.token_seed, r.prefill, r.kv_layout, r.kernel) for r in runs]
    assert len(set(keys)) == len(keys), "a run is counted twice"


def test_thresholds_are_derived_from_it(runs: list[CleanRun]) -> None:
    for name, limits in calibrate.derive(runs).items():
        assert thresholds(name).as_dict() == limits


def test_no_clean_run_is_above_its_threshold(runs: list[CleanRun]) -> None:
    alone = thresholds("isolated")
    for run in runs:
        allowed = thresholds(Leg.of(run.leg).kind)
        assert run.outcome == PASS
        assert run.rms <= allowed.rms
        assert run.row <= allowed.row
        assert run.isolated_rms <= alone.rms
        assert run.isolated_row <= alone.row


def test_the_documents_show_it(runs: list[CleanRun]) -> None:
    command = "run python -m edgeverify.suites.calibrate --table"
    assert calibrate.table(runs) in (ROOT / "docs" / "measurements.md").read_text(), command
    assert calibrate.quantization_table(runs) in (ROOT / "docs" / "quantization.md").read_text()


def test_thresholds_follow_what_is_measured(runs: list[CleanRun]) -> None:
    loud = replace(runs[0], rms=3.0, row=9.0)
    table = calibrate.derive([loud, *runs[1:]])
    assert table[loud.leg] == {"rms": 3.45, "row": 10.35}
    quiet = [replace(run, rms=0.9, row=1.1, isolated_rms=0.9, isolated_row=1.1) for run in runs]
    assert calibrate.derive(quiet)["conversion"] == calibrate.FLOOR
