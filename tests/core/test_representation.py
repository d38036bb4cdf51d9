"""When a difference is one of representation, and when it stays a fault."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeverify.core.representation import GROSS, NOTE, excuse
from edgeverify.core.results import FAIL, PASS, UNCHECKED, TapResult
from edgeverify.core.trace import Trace

STARTS = {"prefill.0": 0, "decode.0": 3}
ROWS = {"prefill.0": (0, 3), "decode.0": (3, 4)}


def trace() -> Trace:
    """Two steps of two blocks whose caches are what was attended with."""
    rng, made = np.random.default_rng(0), Trace()
    for block in (0, 1):
        for which in "kv":
            rows = rng.standard_normal((1, 4, 2, 8)).astype(np.float32)
            for step, (first, last) in ROWS.items():
                made.add(step, f"blocks.{block}.attn.{which}", rows[:, first:last])
                made.add(step, f"kv.{block}.{which}", rows[:, :last].copy())
    return made


def result(tap: str, outcome: str = PASS, ratio: float | None = 1.0) -> TapResult:
    return TapResult(tap, outcome, error_ratio=ratio, row_ratio=ratio)


def keys_differ(ratio: float = 1e5) -> list[TapResult]:
    """q, k and K's cache differ, and what follows does not."""
    return [
        *(
            result(f"{step}/{tap}", FAIL, ratio)
            for step in STARTS
            for tap in ("blocks.0.attn.q", "blocks.0.attn.k", "kv.0.k")
        ),
        *(result(f"{step}/{tap}") for step in STARTS for tap in ("blocks.0.attn.out", "logits")),
    ]


def test_a_gross_difference_without_consequence_passes_and_is_told() -> None:
    told, note = excuse(keys_differ(), trace(), STARTS)
    assert {tap.outcome for tap in told} == {PASS}
    assert [tap.tap for tap in told if tap.reason] == [
        f"{step}/{tap}"
        for step in STARTS
        for tap in ("blocks.0.attn.q", "blocks.0.attn.k", "kv.0.k")
    ]
    assert note == f"{NOTE}: other values in attn.q, attn.k, the KV cache; the rest agrees"


@pytest.mark.parametrize("isolated", [None, FAIL, PASS])
def test_what_passes_passes_in_both_runs(isolated: str | None) -> None:
    results = [replace(tap, isolated_outcome=isolated) for tap in keys_differ()]
    told, _ = excuse([tap for tap in results if tap.outcome == FAIL], trace(), STARTS)
    assert {tap.outcome for tap in told} == {PASS}
    assert {tap.isolated_outcome for tap in told} == {None if isolated is None else PASS}


@pytest.mark.parametrize("tap", ["final_norm", "blocks.0.attn_norm", "blocks.1.ff_norm"])
def test_a_norm_that_is_folded_into_what_follows_passes(tap: str) -> None:
    folded = [result(f"{step}/{tap}", FAIL, 1e5) for step in STARTS]
    told, note = excuse([*folded, result("decode.0/logits")], trace(), STARTS)
    assert {tap.outcome for tap in told} == {PASS}
    told_of = f"other values in {tap.rpartition('.')[2]}; the rest agrees"
    assert note == f"another representation of the same function: {told_of}"


def test_a_right_leg_is_left_as_it_is() -> None:
    clean = [result("prefill.0/logits")]
    assert excuse(clean, trace(), STARTS) == (clean, "")


@pytest.mark.parametrize(
    "tap", ["embed", "blocks.0.attn.out", "blocks.0.ff.out", "blocks.0.out", "logits"]
)
def test_any_consequence_makes_it_a_fault(tap: str) -> None:
    results = [*keys_differ(), result(f"decode.0/{tap}", FAIL, 1e5)]
    assert excuse(results, trace(), STARTS) == (results, "")


@pytest.mark.parametrize("ratio", [GROSS * 0.99, GROSS])
def test_a_small_difference_stays_a_fault(ratio: float) -> None:
    """What follows could have dampened it below the limit."""
    results = keys_differ(ratio)
    assert excuse(results, trace(), STARTS) == (results, "")


def test_a_difference_that_is_no_value_stays_a_fault() -> None:
    results = [*keys_differ(), result("prefill.0/blocks.0.attn.v", FAIL, None)]
    assert excuse(results, trace(), STARTS) == (results, "")


def test_what_is_unchecked_excuses_nothing() -> None:
    results = [*keys_differ(), result("prefill.0/blocks.0.ff.out", UNCHECKED, None)]
    assert excuse(results, trace(), STARTS) == (results, "")


def test_the_block_by_block_run_must_agree_as_well() -> None:
    results = [replace(tap, isolated_ratio=2.0) for tap in keys_differ()]
    assert excuse(results, trace(), STARTS) == (results, "")


@pytest.mark.parametrize("step", STARTS)
def test_a_cache_that_is_not_what_was_attended_with_stays_a_fault(step: str) -> None:
    """Also in the last step, behind which nothing could show it."""
    changed = trace()
    changed.arrays[f"{step}/kv.0.k"][0, -1, 0, 0] += 1
    results = keys_differ()
    assert excuse(results, changed, STARTS) == (results, "")


def test_a_cache_that_loses_earlier_rows_stays_a_fault() -> None:
    changed = trace()
    changed.arrays["decode.0/kv.0.k"][0, 0] = 0
    results = keys_differ()
    assert excuse(results, changed, STARTS) == (results, "")


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("which", ["k", "v"])
def test_every_cache_is_held_against_what_its_own_block_attended_with(
    block: int, which: str
) -> None:
    results = [
        result(f"{step}/{tap}", FAIL, 1e5)
        for step in STARTS
        for tap in (f"blocks.{block}.attn.{which}", f"kv.{block}.{which}")
    ]
    told, note = excuse(results, trace(), STARTS)
    assert {tap.outcome for tap in told} == {PASS}
    assert note == f"{NOTE}: other values in attn.{which}, the KV cache; the rest agrees"


@pytest.mark.parametrize("tap", ["kv.0.k", "blocks.0.attn.k"])
@pytest.mark.parametrize("step", STARTS)
def test_a_cache_that_cannot_be_held_against_anything_stays_a_fault(step: str, tap: str) -> None:
    lacking = trace()
    del lacking.arrays[f"{step}/{tap}"]
    results = keys_differ()
    assert excuse(results, lacking, STARTS) == (results, "")
