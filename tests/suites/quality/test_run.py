"""The whole line on a tiny port, against a plain computation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgeverify import load_port
from edgeverify.core.results import FAIL, PASS, UNCHECKED
from edgeverify.legs.selectors import Selectors
from edgeverify.litert.recipes import Recipe
from edgeverify.suites.quality import run as line
from edgeverify.suites.quality.gate import Gates, parse
from edgeverify.suites.quality.logits import Scored
from edgeverify.suites.quality.model import Evaluation
from edgeverify.suites.quality.run import Asked, evaluate
from edgeverify.suites.quality.statistics import Positions, Resamples

WINDOW, TOKENS = 24, 60  # the last window is padded


def evaluated(recipes: tuple[str, ...], gates: Gates | None = None, **choices: Any) -> Evaluation:
    chosen = Selectors.of(recipes=recipes, **choices)
    asked = Asked(tokens=TOKENS, window=WINDOW, gates=gates or Gates())
    return evaluate(load_port("smollm2"), chosen, asked)


@pytest.fixture(scope="module")
def result() -> Evaluation:
    gates = Gates(parse("top1>0.99"), {"dynamic_int8": parse("mean_kl<1e-6")}, "a test")
    return evaluated(("dynamic_int8", "dynamic_int4_block128"), gates)


@pytest.mark.slow
def test_the_float_file_comes_first_and_is_the_reference(result: Evaluation) -> None:
    row = result.rows[0]
    assert row.recipe == "float32"
    assert row.figures is not None
    assert row.figures.mean_kl.value < 1e-9
    assert row.figures.top1.value == 1.0
    assert row.figures.mean_kl_over_float.value == 0.0
    assert row.figures.perplexity.value == pytest.approx(result.reference.value, rel=1e-5)
    assert row.gates == ()  # it was not asked for


@pytest.mark.slow
def test_a_recipe_has_its_figures_and_its_own_gates(result: Evaluation) -> None:
    row = result.rows[1]
    assert row.recipe == "dynamic_int8"
    assert row.figures is not None
    assert 1e-6 < row.figures.mean_kl.value < 0.1
    assert row.figures.mean_kl_over_float.low is not None
    assert row.figures.mean_kl_over_float.low > 0
    assert row.size_bytes is not None
    assert row.size_bytes < 0.6 * (result.rows[0].size_bytes or 0)
    assert [str(judged.condition) for judged in row.gates] == ["mean_kl < 1e-06"]
    assert row.outcome == FAIL


@pytest.mark.slow
def test_a_recipe_that_cannot_be_applied_is_a_row(result: Evaluation) -> None:
    row = result.rows[2]
    assert (row.recipe, row.outcome, row.figures) == ("dynamic_int4_block128", UNCHECKED, None)
    assert "is not divisible by block size 128" in row.reason
    assert result.positions == TOKENS - 1
    assert result.peak_memory is not None
    assert json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices", [{"kv_layout": "transposed"}, {"mask_as_input": True}, {"kernel": "builtin"}]
)
def test_every_kind_of_file_is_scored_alike(choices: dict[str, Any]) -> None:
    found = evaluated(("float32",), **choices).rows[0].figures
    assert found is not None
    assert found.mean_kl.value < 1e-9


@pytest.mark.slow
def test_windows_that_the_model_has_no_positions_for_are_refused() -> None:
    from edgeverify.core.errors import UsageError

    with pytest.raises(UsageError, match="a window of 4096 tokens does not fit the model's"):
        evaluate(load_port("smollm2"), Selectors(), Asked(window=4096))


def positions(kl: float) -> Positions:
    ones = np.ones(8)
    return Positions(kl * ones, ones, ones > 0, ones)


@pytest.fixture
def row(tmp_path: Any) -> Callable[..., Any]:
    path = tmp_path / "x.tflite"
    path.write_bytes(b"1234")

    def make(own: float, of_float: float = 0.0, gate: str = "top1>0") -> Any:
        resamples = Resamples.of(np.zeros(8, int))
        scored = Scored(positions(own), 10.0)
        recipe = Recipe("fp16")
        return line._row(recipe, path, scored, positions(of_float), resamples, parse(gate))

    return make


def test_what_is_not_finite_fails_without_any_gate(row: Callable[..., Any]) -> None:
    made = row(np.nan)
    assert made.outcome == FAIL
    assert made.figures is None
    assert made.reason == "its logits are not finite at 8 of 8 positions"


def test_nothing_is_held_against_a_float_file_that_is_not_finite(row: Callable[..., Any]) -> None:
    made = row(0.5, np.nan)
    assert made.outcome == UNCHECKED
    assert made.figures is None


def test_gates_may_name_size_and_speed(row: Callable[..., Any]) -> None:
    assert row(0.5, gate="size_mb<=4e-6,tokens_per_second>=10").outcome == PASS
    assert row(0.5, gate="size_mb<4e-6").outcome == FAIL
    assert row(0.5, gate="tokens_per_second>10").outcome == FAIL
