"""The judgement against the control, on errors made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgeverify.core.compare import Thresholds
from edgeverify.core.results import FAIL, PASS
from edgeverify.core.trace import Trace
from edgeverify.legs.quantization.control_leg import Control, judge

LIMITS = Thresholds(1.5, 4.0)
ROWS, WIDTH, FLOOR = 20, 8, 1e-7
KEYS = [f"prefill.0/{tap}" for tap in ("blocks.0.attn.k", "kv.0.k", "blocks.0.attn.out")]
STARTS = {"prefill.0": 0}


def _exact() -> Trace:
    draw = np.random.default_rng(0)
    return Trace({key: draw.normal(size=(1, ROWS, WIDTH)) for key in KEYS})


def _off(exact: Trace, ratios: dict[str, np.ndarray]) -> Trace:
    """The exact values with an error of so many floors in each row."""
    out = {}
    for key in KEYS:
        direction = np.ones(WIDTH) / np.sqrt(WIDTH)
        scale = np.linalg.norm(exact[key], axis=-1, keepdims=True) * FLOOR
        out[key] = exact[key] + ratios.get(key, np.ones(ROWS))[None, :, None] * scale * direction
    return Trace(out)


def _judge(ratios: dict[str, np.ndarray], float32: dict[str, np.ndarray] | None = None):  # type: ignore[no-untyped-def]
    exact = _exact()
    floor = {key: np.full(ROWS, FLOOR) for key in KEYS}
    control = Control(exact, _off(exact, float32 or {}), floor)
    return judge(_off(exact, ratios), control, LIMITS, KEYS, STARTS)


def _rows(value: float, *odd: tuple[int, float]) -> np.ndarray:
    rows = np.full(ROWS, value)
    for index, other in odd:
        rows[index] = other
    return rows


def test_float32_rounding_passes() -> None:
    found = _judge({})
    assert {result.outcome for result in found.values()} == {PASS}
    assert found[KEYS[0]].error_ratio == pytest.approx(1.0, rel=1e-3)


def test_a_few_rows_that_were_rounded_the_other_way_pass_and_do_not_count() -> None:
    result = _judge({KEYS[0]: _rows(1.0, (3, 9e4), (11, 2e3))})[KEYS[0]]
    assert result.outcome == PASS
    assert result.error_ratio == pytest.approx(1.0, rel=1e-3)
    assert result.row_ratio == pytest.approx(9e4, rel=1e-3)


def test_all_rows_slightly_off_is_a_failure() -> None:
    result = _judge({KEYS[0]: _rows(2.0)})[KEYS[0]]
    assert result.outcome == FAIL
    assert "against the control: error ratio 2" in result.reason


def test_most_rows_far_off_is_a_failure() -> None:
    result = _judge({KEYS[0]: _rows(50.0)})[KEYS[0]]
    assert result.outcome == FAIL
    assert "20 of 20 rows" in result.reason


def test_behind_a_key_that_was_rounded_otherwise_attention_is_not_predicted() -> None:
    moved = {KEYS[1]: _rows(1.0, (5, 1e4)), KEYS[2]: np.where(np.arange(ROWS) < 5, 1.0, 300.0)}
    assert _judge(moved)[KEYS[2]].outcome == PASS
    moved[KEYS[2]] = np.full(ROWS, 300.0)  # also before that row
    assert _judge(moved)[KEYS[2]].outcome == FAIL


def test_a_tap_that_the_control_itself_rounds_otherwise_in_many_rows_is_left_out() -> None:
    chaotic = np.where(np.arange(ROWS) % 2 == 0, 1e4, 1.0)
    found = _judge({KEYS[0]: chaotic}, {KEYS[0]: chaotic})
    assert KEYS[0] not in found
    assert KEYS[1] in found
