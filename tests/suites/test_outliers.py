"""Right models with outliers pass: the runs that are kept, and some that are drawn now."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgeverify.core.results import PASS
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.hf.roles import Roles
from edgeverify.suites import outliers
from edgeverify.suites.outliers import KINDS, SIZES, OutlierRun
from edgeverify_models import CATALOGUE, load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs() -> list[OutlierRun]:
    return outliers.load_runs()


def test_the_kept_runs_are_broad_and_all_pass(runs: list[OutlierRun]) -> None:
    assert len(runs) >= 500
    assert {run.outcome for run in runs} == {PASS}
    authoring = {(r.model, r.kind, r.size) for r in runs if r.leg == "authoring"}
    assert authoring == {(m, k, s) for m in CATALOGUE for k in KINDS for s in SIZES}
    for leg in ("conversion", *(f"quantization:{name}" for name in outliers.RECIPES)):
        files = {(run.model, run.kind) for run in runs if run.leg == leg}
        assert files == {(model, kind) for model in CATALOGUE for kind in KINDS}
    assert any(run.more_runs for run in runs), "nothing needed what they are made for"


def test_the_document_shows_them(runs: list[OutlierRun]) -> None:
    text = (ROOT / "docs" / "measurements.md").read_text()
    assert outliers.table(runs) in text, "run python -m edgeverify.suites.outliers --table"
    assert f"{len(runs)} legs of right models" in text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("port", CATALOGUE)
def test_every_kind_changes_a_weight_of_every_port(kind: str, port: str) -> None:
    tensors = open_checkpoint(None, load(port), size="tiny").tensors()
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    KINDS[kind](Roles(changed), 300.0)
    odd = [name for name in tensors if not torch.equal(tensors[name], changed[name])]
    assert len(odd) == 1
    assert changed[odd[0]].abs().max() > 10 * tensors[odd[0]].abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("port", ["tinyllama", "phi2"])
@pytest.mark.parametrize("size", [100.0, 1000.0, 1e4])
def test_a_right_port_passes_at_sizes_that_no_run_had(port: str, size: float) -> None:
    for kind in KINDS:
        for run in outliers.run(port, kind, size, 11, backends=("reference", "reauthored")):
            assert run.outcome == PASS, run
