"""Who has moved since a golden was kept, on goldens made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgeverify.core.results import FAIL, PASS
from edgeverify.core.trace import Trace
from edgeverify.suites.golden import blame
from edgeverify.suites.golden.compare import ORACLE, REAUTHORED, Now, limits
from edgeverify.suites.golden.file import Golden, held

UPDATE = "edgeverify golden x --update-golden"
ENVIRONMENT = {
    "transformers": "5.23.0",
    "machine": "x86_64",
    "instruction_set": "AVX2",
    "kernel": "xnnpack",
    "threads": 1,
}
GIVENS: dict[str, Any] = {"config": "c", "weights": "w", "inputs": "i", "condensed": False}
FILE = {
    **GIVENS,
    "code": "port",
    "file": "sha",
    "bytes": 100,
    "ops": {"decode": {"RESHAPE": 12, "ADD": 3}},
    "recipes": {
        "dynamic_int8": {"file": "q", "bytes": 40, "ops": {"decode": {"ADD": 3}}},
        "fp16": {"unchecked": "cannot be applied"},
    },
}
KEYS = ("prefill.0/embed", "prefill.0/logits", "decode.0/logits")
ROWS, WIDTH, FLOOR = 12, 200, 1e-6


def trace(seed: int = 0, *, dtype: str = "f4") -> Trace:
    rng = np.random.default_rng(seed)
    return Trace({k: rng.normal(size=(1, ROWS, WIDTH)).astype(dtype) for k in KEYS})


def now_of(facts: dict[str, Any], *prefixes: str, **environment: Any) -> Now:
    traces = {p: trace(dtype="f8" if p == ORACLE else "f4") for p in ("", *prefixes)}
    floors = {p: {key: np.full(ROWS, FLOOR) for key in KEYS} for p in traces}
    return Now(facts, {**ENVIRONMENT, **environment}, traces, floors)


def kept_of(now: Now) -> Golden:
    arrays = held(now.traces, condense=now.facts["condensed"])
    return Golden(arrays, now.facts, now.environment, UPDATE)


def moved(now: Now, ratio: float, prefix: str = "", key: str = "prefill.0/logits") -> None:
    """Moves every row of one array by ``ratio`` times the floor."""
    array = now.traces[prefix].arrays[key].astype(np.float64)
    noise = np.random.default_rng(9).normal(size=array.shape)
    noise /= np.linalg.norm(noise, axis=2, keepdims=True)
    array = array + noise * np.linalg.norm(array, axis=2, keepdims=True) * FLOOR * ratio
    now.traces[prefix].arrays[key] = array.astype(now.traces[prefix][key].dtype)


def judged(kept: Golden, now: Now) -> Any:
    return blame.judge("x.safetensors", kept, now, UPDATE)


def reference() -> tuple[Golden, Now]:
    return kept_of(now_of(GIVENS, ORACLE)), now_of(GIVENS, ORACLE)


def file() -> tuple[Golden, Now]:
    return kept_of(now_of(FILE, REAUTHORED)), now_of(FILE, REAUTHORED)


def test_the_same_run_passes_and_says_that_it_is_bitwise_the_same() -> None:
    for kept, now in (reference(), file()):
        result = judged(kept, now)
        assert (result.outcome, result.moved) == (PASS, ())
        assert result.lines == ("5 arrays, bitwise as they were",)


def test_a_change_within_the_floor_passes_and_is_told() -> None:
    kept, now = reference()
    moved(now, 0.5)
    result = judged(kept, now)
    assert result.outcome == PASS
    assert result.lines[0].startswith("5 arrays within the floor: largest change 0.5")


def test_a_reference_that_moved_is_named_with_the_versions() -> None:
    kept, now = reference()
    moved(now, 30)
    now = replace(now, environment={**now.environment, "transformers": "5.24.0"})
    result = judged(kept, now)
    assert (result.outcome, result.moved) == (FAIL, ("reference",))
    assert "prefill.0/logits: moved by 30" in result.lines[1]
    assert result.lines[2] == "changed in the environment: transformers 5.23.0 → 5.24.0"
    assert result.lines[3] == f"if the change is meant: {UPDATE}"
    assert [change.key for change in result.changes] == ["prefill.0/logits"]


def test_an_oracle_that_moved_is_told_far_below_the_floor() -> None:
    kept, now = reference()
    moved(now, 0.1, ORACLE)
    result = judged(kept, now)
    assert result.moved == ("oracle",)
    assert "computes something else, in float64, too" in result.lines[1]


def test_one_row_that_moved_fails() -> None:
    kept, now = reference()
    array = now.traces[""].arrays["prefill.0/embed"]
    array[0, 7] *= 1 + 20 * FLOOR
    result = judged(kept, now)
    assert result.moved == ("reference",)
    assert "row 7" in result.changes[0].what


@pytest.mark.parametrize(
    ("fact", "told"),
    [("weights", "holds other weights"), ("inputs", "other tokens"), ("config", "another one")],
)
def test_other_givens_are_named_and_nothing_else_is_blamed(fact: str, told: str) -> None:
    kept, now = file()
    moved(now, 1e6)
    moved(now, 1e6, REAUTHORED)
    result = judged(kept, replace(now, facts={**FILE, fact: "other"}))
    assert (result.outcome, result.moved) == (FAIL, (fact,))
    assert told in result.lines[1]


@pytest.mark.parametrize(("code", "told"), [("port", "same, but"), ("other", "port's config or")])
def test_a_port_that_moved_is_told_from_its_library(code: str, told: str) -> None:
    kept, now = file()
    moved(now, 500, REAUTHORED)
    moved(now, 500)
    result = judged(kept, replace(now, facts={**FILE, "code": code, "file": "other"}))
    assert result.moved == ("reauthored", "file")
    assert told in result.lines[1]


def test_operators_that_came_or_went_are_the_converters() -> None:
    kept, now = file()
    ops = {"decode": {"RESHAPE": 14, "ADD": 3, "CAST": 1}}
    result = judged(kept, replace(now, facts={**FILE, "file": "other", "ops": ops}))
    assert result.moved == ("converter",)
    assert "another graph: decode: CAST 0 → 1, RESHAPE 12 → 14" in result.lines[1]


def test_a_graph_that_follows_its_port_is_told_so() -> None:
    kept, now = file()
    ops = {"decode": {"RESHAPE": 14, "ADD": 3}}
    facts = {**FILE, "file": "other", "ops": ops, "code": "other"}
    result = judged(kept, replace(now, facts=facts))
    assert "the graph follows the re-authored model" in result.lines[1]


def test_constants_that_changed_are_the_converters() -> None:
    kept, now = file()
    moved(now, 50)
    result = judged(kept, replace(now, facts={**FILE, "file": "other"}))
    assert result.moved == ("converter",)
    assert "the same operators, with other constants" in result.lines[1]


def test_the_same_file_that_gives_something_else_is_the_kernels() -> None:
    kept, now = file()
    moved(now, 50)
    result = judged(kept, now)
    assert result.moved == ("kernels",)
    assert "kernels: the same file gives something else" in result.lines[1]


def test_a_quantized_file_that_changed_is_the_quantizers() -> None:
    kept, now = file()
    recipes: dict[str, Any] = {
        **FILE["recipes"],  # type: ignore[dict-item]
        "dynamic_int8": {"file": "z", "bytes": 44, "ops": {"decode": {"ADD": 4}}},
    }
    result = judged(kept, replace(now, facts={**FILE, "recipes": recipes}))
    assert result.moved == ("quantizer",)
    assert "dynamic_int8 from the same float file" in result.lines[1]
    assert "decode: ADD 3 → 4; 40 → 44 bytes" in result.lines[1]
    recipes = {**FILE["recipes"], "fp16": FILE["recipes"]["dynamic_int8"]}  # type: ignore[dict-item,index]
    result = judged(kept, replace(now, facts={**FILE, "recipes": recipes}))
    assert "cannot be applied → it applies" in result.lines[1]
    gone = judged(kept, replace(now, facts={**FILE, "recipes": {"fp16": recipes["fp16"]}}))
    assert "quantizer: there is no recipe dynamic_int8 any more" in gone.lines
    # A quantized file follows its float file.
    facts = {**FILE, "recipes": recipes, "file": "other"}
    assert judged(kept, replace(now, facts=facts)).outcome == PASS


@pytest.mark.parametrize(("moved_to", "named"), [(0.031, ()), (0.08, ("quality",))])
def test_the_quality_of_a_recipe_is_held_to_its_standard_error(
    moved_to: float, named: tuple[str, ...]
) -> None:
    figures = {"mean_kl": 0.026, "se": 0.006, "top1": 0.9}
    facts = {**FILE, "quality": {"dynamic_int8": figures}}
    kept, now = kept_of(now_of(facts, REAUTHORED)), now_of(FILE, REAUTHORED)
    changed = {"dynamic_int8": {**figures, "mean_kl": moved_to, "top1": 0.8}}
    result = judged(kept, replace(now, facts={**FILE, "quality": changed}))
    assert result.moved == named
    if named:
        told = "quality: dynamic_int8: mean KL 0.026 ± 0.006 → 0.08, same top-1 90.0% → 80.0%"
        assert result.lines[1] == told
        assert "no figures any more" in judged(kept, now).lines[1]


def test_another_environment_is_allowed_what_was_measured_and_told() -> None:
    assert limits("other").rms > limits("same").rms
    between = (limits("same").rms + limits("other").rms) / 2
    kept, now = reference()
    moved(now, between)
    assert judged(kept, now).outcome == FAIL
    elsewhere = replace(now, environment={**ENVIRONMENT, "instruction_set": "AVX512"})
    result = judged(kept, elsewhere)
    assert result.outcome == PASS
    assert "(widened for another environment: instruction_set AVX2 → AVX512)" in result.lines[0]


def test_an_array_that_is_gone_new_or_misshapen_fails() -> None:
    kept, now = reference()
    del now.traces[""].arrays["prefill.0/embed"]
    now.traces[""].arrays["decode.1/logits"] = trace()["decode.0/logits"]
    now.traces[""].arrays["decode.0/logits"] = trace()["decode.0/logits"][:, :3]
    told = {change.key: change.what for change in judged(kept, now).changes}
    assert told == {
        "prefill.0/embed": "is gone: the run no longer gives it",
        "decode.0/logits": "was float32 (1, 12, 200), is float32 (1, 3, 200)",
        "decode.1/logits": "is new: the golden has no such array",
    }


def test_nan_is_no_match() -> None:
    kept, now = reference()
    now.traces[""].arrays["prefill.0/embed"][0, 0, 0] = np.nan
    assert judged(kept, now).changes[0].what == "is NaN or Inf"


@pytest.mark.parametrize("key", ["prefill.0/embed", "prefill.0/logits"])
def test_a_condensed_golden_sees_what_moved(key: str) -> None:
    facts = {**GIVENS, "condensed": True}
    kept, now = kept_of(now_of(facts, ORACLE)), now_of(facts, ORACLE)
    result = judged(kept, now)
    assert (result.outcome, result.lines[0][-20:]) == (PASS, "bitwise as they were")
    moved(now, 0.3, key=key)
    assert judged(kept, now).outcome == PASS
    moved(now, 40, key=key)
    result = judged(kept, now)
    assert result.moved == ("reference",)
    assert {change.key.partition(":")[0] for change in result.changes} == {key}


def test_rewriting_tells_everything_that_changed() -> None:
    kept, now = file()
    moved(now, 0.2)
    ops = {"decode": {"RESHAPE": 13, "ADD": 3}}
    now = replace(
        now,
        facts={**FILE, "ops": ops, "code": "other"},
        environment={**ENVIRONMENT, "transformers": "5.24.0"},
    )
    result = blame.rewritten("x.safetensors", kept, now)
    assert result.outcome == FAIL
    assert result.lines[0] == "rewritten: 1 of 5 arrays are others; run again"
    assert "prefill.0/logits: moved by 0.2" in result.lines[1]
    assert result.lines[2:] == (
        "code: is another one",
        "ops: decode: RESHAPE 12 → 13",
        "transformers 5.23.0 → 5.24.0",
    )
