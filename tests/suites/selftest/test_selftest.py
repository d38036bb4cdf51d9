"""The self-test on real models: a handful of faults quickly, all of them slowly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgeverify_models as models
from edgeverify.cli.main import main
from edgeverify.suites.selftest.faults import catalogue
from edgeverify.suites.selftest.faults.catalogue import FAULTS
from edgeverify.suites.selftest.faults.fault import Fault
from edgeverify.suites.selftest.rows import AUDITS, DETECTED, FALSE_ALARM, MISSED, QUIET
from edgeverify.suites.selftest.trial import Bench

HANDFUL = (
    "embedding_table_in_bfloat16",
    "norm_weight_not_loaded",
    "rope_interleaved",
    "kv_heads_repeated_in_turn",
    "decode_mask_off_by_one",
    "cache_not_returned_in_decode",
    "gate_and_up_swapped",
    "untied_head_ignored",
    "tensor_name_misspelt",
    "last_layer_not_run",
    "vocabulary_padded",
    "weight_is_nan",
)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(models.load("tinyllama"))


@pytest.mark.parametrize("name", HANDFUL)
def test_a_fault_is_detected_and_placed(bench: Bench, name: str) -> None:
    row = bench.try_fault(catalogue.find(name))
    assert row.verdict == DETECTED
    assert not row.wrong, row


@pytest.mark.parametrize(
    "name", [f.name for f in FAULTS if f.harmless and f.port and "tinyllama" in f.ports]
)
def test_a_harmless_change_is_not_reported_and_what_differs_is_told(
    bench: Bench, name: str
) -> None:
    row = bench.try_fault(catalogue.find(name))
    assert row.verdict == QUIET, row


def test_a_fault_that_no_activation_shows_is_left_to_the_audits(bench: Bench) -> None:
    assert bench.try_fault(catalogue.find("weight_one_ulp_off")).verdict == AUDITS


def test_a_fault_that_changes_nothing_is_missed_and_a_harmful_one_a_false_alarm(
    bench: Bench,
) -> None:
    """The self-test itself can fail."""
    real = catalogue.find("rope_interleaved")
    nothing = Fault(**{**vars(real), "port": lambda port: port})
    assert bench.try_fault(nothing).verdict == MISSED
    not_harmless = Fault(**{**vars(real), "cause": "", "harmless": "so it is claimed"})
    assert bench.try_fault(not_harmless).verdict == FALSE_ALARM


def test_one_fault_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = tmp_path / "rows.json", tmp_path / "page.md"
    arguments = ["selftest", "tinyllama", "--fault", "rope_interleaved"]
    status = main([*arguments, "--json", str(path), "--markdown", str(page)])
    assert status == 0
    assert "detected      1 of 1 (0 missed)" in capsys.readouterr().out
    data = json.loads(path.read_text())
    assert data["passed"]
    assert [row["fault"] for row in data["rows"]] == ["unchanged", "rope_interleaved"]
    assert data["rows"][1]["cause"] == "RoPE interleaved for half-split"
    assert "| rope |" in page.read_text()


def test_an_unknown_fault_or_model_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "tinyllama", "--fault", "rope"]) == 2
    assert "--fault: there is no 'rope'" in capsys.readouterr().err
    assert main(["selftest", "nope"]) == 2
    assert "there is no 'nope'" in capsys.readouterr().err


@pytest.mark.slow
def test_every_fault_once_is_found_and_nothing_harmless_is_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = main(["selftest", "--quick"])
    out = capsys.readouterr().out
    assert status == 0, out
    assert "block right 100 %, sublayer right 100 %" in out, out
