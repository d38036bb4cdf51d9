"""The tables, word for word."""

from __future__ import annotations

import json
from dataclasses import replace

from edgeverify.core.results import FAIL, PASS, UNCHECKED
from edgeverify.suites.quality import tables
from edgeverify.suites.quality.gate import judge, parse
from edgeverify.suites.quality.model import Evaluation, Row, gateable
from edgeverify.suites.quality.statistics import Estimate, Figures


def figures(mean: float) -> Figures:
    return Figures(
        mean_kl=Estimate(mean, 0.9 * mean, 1.2 * mean),
        median_kl=Estimate(mean / 2, mean / 3, mean),
        p99_kl=Estimate(4 * mean, 3 * mean, 5 * mean),
        max_kl=Estimate(10 * mean),
        top1=Estimate(0.905, 0.89, 0.91),
        top5=Estimate(0.9, 0.88, 0.91),
        perplexity=Estimate(21.9, 18.0, 26.0),
        perplexity_se=2.19,
        mean_kl_over_float=Estimate(mean, 0.9 * mean, 1.2 * mean),
        log_perplexity_over_float=Estimate(-0.02, -0.03, 0.01),
    )


def row(recipe: str, mean: float, gate: str = "") -> Row:
    found = figures(mean)
    judged = judge(parse(gate), gateable(found, 141_849_152, 477.0)) if gate else ()
    outcome = PASS if all(one.holds for one in judged) else FAIL
    return Row(recipe, outcome, found, 141_849_152, 477.0, judged)


def evaluation(*rows: Row) -> Evaluation:
    model = {"name": "smollm2", "size": "135m", "checkpoint": "GGUF", "window": 128}
    return Evaluation(
        selectors={"recipes": ["all"]},
        model={**model, "kernel": "xnnpack", "threads": 2},
        text="edgeverify's own text, 3687 tokens",
        positions=3686,
        reference=Estimate(21.3, 17.0, 26.0),
        reference_se=2.14,
        rows=rows,
        gates_source="--gate",
        environment={"numpy": "2.4.6"},
        timings={"reference": 1.5},
        peak_memory=4 * 2**30,
    )


RESULT = evaluation(
    row("float32", 4e-11),
    row("dynamic_int8", 0.0263, "mean_kl<0.1,top1>0.9"),
    row("dynamic_int4_block32", 0.521, "mean_kl<0.1"),
    Row("dynamic_int4_block128", UNCHECKED, reason="cannot be applied (576 and 128)"),
)


def test_the_terminals_table() -> None:
    shown = tables.lines(RESULT)
    assert shown[0] == (
        "FAIL  smollm2 135m · GGUF · edgeverify's own text, 3687 tokens: 3686 positions in windows "
        "of 128 · xnnpack, 2 threads · peak memory 4.0 GiB"
    )
    assert [" ".join(line.split()) for line in shown[3:8]] == [
        "reference 21.3 ± 2.14",
        "float32 141.8 4e-11 [3.6e-11 4.8e-11] 2e-11 1.6e-10 4e-10 90.5 % 90.0 % 21.9 ± 2.19 477",
        "dynamic_int8 141.8 0.0263 [0.0237 0.0316] 0.0132 0.105 0.263 90.5 % 90.0 % 21.9 ± 2.19 "
        "477",
        "dynamic_int4_block32 141.8 0.521 [0.469 0.625] 0.261 2.08 5.21 90.5 % 90.0 % 21.9 ± 2.19 "
        "477",
        "dynamic_int4_block128 unchecked",
    ]
    assert [line.strip() for line in shown[-5:]] == [
        "dynamic_int8: mean_kl < 0.1 holds: 0.0263",
        "dynamic_int8: top1 > 0.9 holds: 0.905 (the bound is inside the 95 % interval)",
        "dynamic_int4_block32: mean_kl < 0.1 does not hold: 0.521",
        "dynamic_int4_block128: unchecked, cannot be applied (576 and 128)",
        "gates from --gate",
    ]


def test_the_difference_from_the_float_file_has_a_sign() -> None:
    assert [line.split() for line in tables.lines(RESULT)[10:12]] == [
        ["dynamic_int8", "+0.0263", "[+0.0237", "+0.0316]", "-0.02", "[-0.03", "+0.01]"],
        ["dynamic_int4_block32", "+0.521", "[+0.469", "+0.625]", "-0.02", "[-0.03", "+0.01]"],
    ]


def test_markdown_has_the_same_rows() -> None:
    text = tables.markdown(RESULT)
    assert text.startswith("**FAIL** smollm2 135m · ")
    assert "| dynamic_int8 | 141.8 | 0.0263 [0.0237 0.0316] | 0.0132 | 0.105 | 0.263 |" in text
    assert "- dynamic_int4_block32: mean_kl < 0.1 does not hold: 0.521\n" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {len(tables.HEAD) + 1, len(tables.PAIRED_HEAD) + 1}


def test_what_a_release_asks_is_the_worst_row() -> None:
    assert RESULT.outcome == FAIL
    assert evaluation(RESULT.rows[0], RESULT.rows[3]).outcome == UNCHECKED
    assert evaluation(RESULT.rows[0], RESULT.rows[1]).passed


def test_json_holds_everything() -> None:
    told = json.loads(json.dumps(RESULT.to_dict(), allow_nan=False))
    assert told["schema"] == 1
    assert told["outcome"] == FAIL
    assert told["environment"] == {"numpy": "2.4.6"}
    assert told["selectors"] == {"recipes": ["all"]}
    assert told["reference"]["perplexity"] == {"value": 21.3, "low": 17.0, "high": 26.0}
    int8 = told["recipes"][1]
    assert int8["figures"]["max_kl"] == {"value": 0.263, "low": None, "high": None}
    assert int8["gates"][1] == {
        "condition": "top1 > 0.9",
        "value": 0.905,
        "holds": True,
        "uncertain": True,
    }
    assert told["recipes"][3]["figures"] is None


def test_intervals_of_a_short_text_are_said_to_be_too_narrow() -> None:
    told = "1000 positions: below 1024 the intervals are too narrow"
    assert told in tables.markdown(replace(RESULT, positions=1000))
    assert "too narrow" not in tables.markdown(RESULT)
