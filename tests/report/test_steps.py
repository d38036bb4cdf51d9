from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edgeverify.core.leg import Leg
from edgeverify.core.results import Finding, LegResult, Report
from edgeverify.report.steps import failure_text, find_step, step_results, step_text


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


def test_a_failure_has_the_answer_first(report: Callable[..., Report]) -> None:
    made = report("fail")
    finding = Finding(
        "authoring.cause",
        "authoring",
        "prefill.0/blocks.1.attn.k",
        "",
        "rope.base",
        changes=("rotary base 10000 → 3700",),
    )
    made = replace(made, findings=(*made.findings, finding))
    assert failure_text(made, "authoring", "prefill.0").split("\n")[:7] == [
        "authoring prefill.0: fail: rotary base 10000, should be: 3700",
        "cause  rotary base 10000, should be: 3700",
        "       named by the diagnosis: repaired, these taps are within float32 noise",
        "where  authoring (Hugging Face → port): attn.k of block 1",
        "       first at prefill.0/blocks.1.attn.k: error 71.0 times float32 noise (allowed 1.50)",
        "next   correct it in tinyllama, then: edgeverify.verify(port)",
        "",
    ]


def test_a_step_that_a_passing_leg_lacks_has_no_answer(report: Callable[..., Report]) -> None:
    assert failure_text(report(), "authoring", "decode.99").startswith(
        "authoring decode.99: unchecked: "
    )
