"""The true cause is named, no cause is claimed beyond what was measured, and nothing breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import edgeverify_models as models
from edgeverify.core.results import Finding, Report
from edgeverify.diagnose import diagnosis, search
from edgeverify.diagnose.fault import Change
from edgeverify.diagnose.feed_forward import FeedForwardOf
from edgeverify.legs import line
from edgeverify.legs.authoring import find_causes
from edgeverify.legs.baselines import reference_baselines
from edgeverify.suites.check import verify
from tests.diagnose.faulty import (
    FAULTS,
    UNKNOWN,
    built,
    rope,
    rotary,
    verdict,
)
from tests.variants import rope_base_off

# One of each family of repairs; the others are slow only because they are many.
QUICK = {
    "gemma1_norm_without_one",
    "gemma1_exact_gelu",
    "gemma1_groups_tiled",
    "gemma1_scale_estimated",
    "gemma2_no_score_cap",
    "gemma2_no_final_cap",
    "gemma2_window_one_more",
    "gemma2_post_norm_over_sum",
    "tinyllama_interleaved",
    "tinyllama_base_in_code",
    "tinyllama_decode_positions",
    "tinyllama_decode_mask",
    "tinyllama_down_of_another_block",
    "tinyllama_tied_head",
    "tinyllama_rope_in_bfloat16",
    "phi2_whole_head_rotated",
    "phi2_sequential",
    "phi2_no_head_bias",
    "phi2_split_by_group",
    "smollm2_no_second_residual",
    "smollm2_attention_scaled",
    "smollm2_cache_in_bfloat16",
}


def checked(port: Any) -> Report:
    return verify(port, backends=("reference", "reauthored"))


def causes(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.id == "authoring.cause"]


@pytest.mark.parametrize(
    "fault",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS],
)
def test_the_true_cause_is_named(fault: str) -> None:
    make, kinds = FAULTS[fault]
    report = checked(make())
    told = [finding.message for finding in report.findings]
    assert verdict(report, kinds) == "right", told
    for finding in causes(report):
        assert finding.ratio is not None
        assert finding.ratio <= 4  # the row limit, which holds for a single row
        assert "restores parity" in finding.message


@pytest.mark.parametrize("fault", UNKNOWN)
def test_no_cause_is_claimed_for_a_fault_that_is_on_no_list(fault: str) -> None:
    report = checked(UNKNOWN[fault]())
    assert causes(report) == []
    assert any(
        finding.id == "authoring.unexplained" and "repairs tried restores parity" in finding.message
        for finding in report.findings
    )


def test_the_message_says_where_what_and_how_near() -> None:
    (cause,) = causes(checked(rope_base_off()))
    where, _, rest = cause.message.partition(": ")
    assert where == "blocks.*.attn.q, blocks.*.attn.k"
    assert rest.startswith("rotary base 10000 → 5300 restores parity (ratio 0.")
    assert rest.endswith("; the error: position 0 agrees, all others differ")
    assert (cause.leg, cause.tap, cause.cause) == (
        "authoring",
        "prefill.0/blocks.0.attn.q",
        "rope.base",
    )
    assert len(cause.taps) == 6


def test_two_faults_of_one_block_are_told_apart() -> None:
    port = rope("tinyllama", lambda p, n, b: rotary.build_rope(p, n, 10000.0))

    def relu(model: nn.Module) -> None:
        model.transformer_blocks[1].ff.act = nn.functional.relu

    class Both(port.model_class):  # type: ignore[misc, name-defined]
        def __init__(self, config: Any, mask_cache_size: int = 0) -> None:
            super().__init__(config, mask_cache_size)
            relu(self)

    named = {
        finding.cause: finding.message
        for finding in causes(checked(replace(port, model_class=Both)))
    }
    assert named.keys() == {"rope.base", "ff.activation"}
    assert named["ff.activation"].startswith("blocks.1.ff.out: ReLU → silu restores parity")


@pytest.mark.parametrize("name", ["gemma1", "gemma2", "phi2", "openelm", "smollm2"])
def test_a_right_port_has_no_cause(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is asked for one."""
    asked: list[Any] = []

    def remember(run: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(run)
        return run_reauthored(run, *args, **kwargs)

    run_reauthored = line.run_reauthored
    monkeypatch.setattr(line, "run_reauthored", remember)
    report = checked(models.load(name))
    assert report.passed
    assert report.findings == ()
    (run,) = asked
    run, baselines = reference_baselines(run, with_file=False)
    baseline = baselines["authoring"]
    assert find_causes(run, baseline) == ()


def test_a_repair_that_raises_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before and after it still do."""
    compute, changes = FeedForwardOf.compute, FeedForwardOf.changes

    def first_raises(self: Any, right: Any, port: Any, rows: Any) -> Iterator[Change[Any]]:
        yield Change("ff.broken", "a change that cannot be computed", None)
        yield from changes(self, right, port, rows)
        raise RuntimeError("a change that cannot be made")

    def fails_on_none(self: Any, spec: Any, inputs: Any) -> torch.Tensor:
        if spec is None:
            raise ValueError("not for this port")
        return compute(self, spec, inputs)

    monkeypatch.setattr(FeedForwardOf, "changes", first_raises)
    monkeypatch.setattr(FeedForwardOf, "compute", fails_on_none)
    report = checked(FAULTS["tinyllama_gate_and_up"][0]())
    assert [finding.cause for finding in causes(report)] == ["ff.gate"]


def test_a_diagnosis_that_raises_leaves_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr("edgeverify.legs.authoring.diagnose", broken)
    report = checked(rope_base_off())
    found = [finding.id for finding in report.findings if not finding.id.startswith("audit.")]
    assert found == ["authoring.divergence", "authoring.unexplained"]
    assert report.findings[-1].message.endswith("RuntimeError: broken")


def test_a_port_that_gives_other_values_each_time_is_told() -> None:
    report = checked(built("tinyllama", lambda block: setattr(block.ff, "act", _dropped_out)))
    assert causes(report) == []
    (left,) = [finding for finding in report.findings if finding.id == "authoring.unexplained"]
    assert "other values in a second run on the same inputs" in left.message


def _dropped_out(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.silu(nn.functional.dropout(x, 0.1))


def fit(kind: str, ratio: float, *, held: bool = False, scope: str = "") -> Any:
    return search._Fit(Change(kind, f"{kind} wrong → right", None, held), ratio, scope)


class TestSeveralExplanations:
    def test_both_are_told_where_they_explain_it_as_well(self) -> None:
        cause = search._best([fit("norm.eps", 0.9), fit("factor", 0.92)], "out")
        assert cause is not None
        assert (cause.kind, cause.others) == ("norm.eps", ("factor wrong → right",))

    def test_one_that_leaves_a_larger_error_is_not(self) -> None:
        cause = search._best([fit("norm.eps", 1.4), fit("factor", 0.9)], "out")
        assert cause is not None
        assert (cause.kind, cause.others) == ("factor", ())

    def test_a_tensor_that_the_port_is_seen_to_hold_needs_no_other(self) -> None:
        cause = search._best([fit("ff.gate", 0.9), fit("weight", 0.95, held=True)], "ff.out")
        assert cause is not None
        assert (cause.kind, cause.others) == ("weight", ())

    def test_what_holds_of_every_step_says_more(self) -> None:
        cause = search._best([fit("mask", 0.5, scope=" in decode steps"), fit("row", 0.9)], "out")
        assert cause is not None
        assert cause.kind == "row"

    def test_none_is_none(self) -> None:
        assert search._best([], "out") is None


def test_blocks_are_told_together() -> None:
    names = ["blocks.0.attn.q", "blocks.1.attn.q", "blocks.0.out", "final_norm", "kv.1.k"]
    assert diagnosis.where(names, 2) == "blocks.*.attn.q, blocks.0.out, final_norm, kv.1.k"
    assert diagnosis.where(["blocks.0.out", "blocks.2.out"], 3) == "blocks.{0,2}.out"
