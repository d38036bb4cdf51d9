from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edgeverify.core.leg import Leg
from edgeverify.core.results import LegResult, Report
from edgeverify.report.steps import find_step, step_results, step_text


def test_steps_come_in_order_with_their_own_outcome(report: Callable[..., Report]) -> None:
    steps = step_results(report("fail").legs["authoring"])
    assert [step.step for step in steps][:4] == ["prefill.0", "prefill.1", "prefill.2", "decode.0"]
    assert [step.outcome for step in steps] == ["fail"] + ["pass"] * 10
    assert steps[0].worst("error_ratio") == 71.0


def test_a_failed_leg_never_shows_passing_steps_only(report: Callable[..., Report]) -> None:
    leg = replace(report().legs["authoring"], outcome="fail", reason="caches differ in length")
    steps = step_results(leg)
    assert {step.outcome for step in steps} == {"fail"}
    assert step_text(leg, steps[0]).startswith("authoring prefill.0: fail: caches differ in length")


def test_a_leg_without_taps_is_no_pass() -> None:
    leg = LegResult(Leg.of("authoring"), "pass", {})
    assert [step.outcome for step in step_results(leg)] == ["unchecked"]
    assert find_step(leg, "prefill.0").outcome == "unchecked"
    assert step_text(leg, find_step(leg, "prefill.0")) == (
        "authoring prefill.0: unchecked: nothing was compared"
    )


def test_the_text_says_what_the_terminal_says(report: Callable[..., Report]) -> None:
    made = report("fail")
    leg = made.legs["authoring"]
    assert step_text(leg, find_step(leg, "prefill.0"), made.findings).split("\n") == [
        "authoring prefill.0: fail: first diverging tap prefill.0/blocks.1.attn.k: error ratio "
        "71.0",
        "faulty on its own: blocks.1.attn.k",
        "error ratio 71, allowed 1.5. Look at the key projection.",
        "worst 71.0 (allowed 1.50) at prefill.0/blocks.1.attn.k, worst row 92.3 (allowed 4.00)",
        "taps of this step:",
        "  prefill.0/blocks.1.attn.k: fail, error ratio 71, allowed 1.5",
        "  prefill.0/logits: fail, error ratio 71, allowed 1.5",
        "6 taps compared: 4 pass, 2 fail, 0 unchecked",
    ]
