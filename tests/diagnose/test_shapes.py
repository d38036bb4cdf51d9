"""Shapes of errors, on made-up taps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgeverify.core.case import Case, plan_steps
from edgeverify.diagnose.scene import Seen
from edgeverify.diagnose.shapes import shapes

FLOOR = 1e-7
PROMPT, DECODED = 20, 4
ROWS = PROMPT + DECODED
WINDOW = 9


def scene() -> Any:
    """A prefill of 12, one of 8 padded to 12, four decode steps; token 5 is at rows 3 and 17."""
    tokens = [100 + row for row in range(ROWS)]
    tokens[3] = tokens[17] = 5
    steps = plan_steps(tokens[:PROMPT], (12,), tokens[PROMPT:])
    case = Case("made-up", "tiny", "default", (12,), 48, steps)
    return SimpleNamespace(case=case, hf={"sliding_window": WINDOW})


def seen(change: Any, *, heads: bool = False) -> Seen:
    """A tap of 24 rows and 6 channels (or 3 heads of 2); ``change(truth)`` is the port's."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(ROWS, 3, 2) if heads else (ROWS, 6))
    port = change(truth.copy())
    rows = np.arange(ROWS)
    step = np.where(rows < 12, 0, np.where(rows < PROMPT, 1, rows))
    wrong = (port != truth).reshape(ROWS, -1).any(1)
    failing = np.array([wrong[step == step[row]].any() for row in rows])
    return Seen(
        "blocks.0.attn.q" if heads else "blocks.0.out",
        torch.arange(ROWS),
        rows,
        torch.from_numpy(port),
        torch.from_numpy(truth),
        np.full(ROWS, FLOOR),
        failing,
        rows >= PROMPT,
    )


def noise(rows: Any) -> Any:
    """An error of 1 % in some rows, of no shape within them."""

    def change(truth: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(1)
        truth[rows] += 0.01 * rng.normal(size=truth[rows].shape)
        return truth

    return change


def growing(truth: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    error = rng.normal(size=truth.shape)
    size = np.linalg.norm(truth, axis=1) / np.linalg.norm(error, axis=1)
    return truth + 1e-3 * np.arange(ROWS)[:, None] * size[:, None] * error


def one_channel(truth: np.ndarray) -> np.ndarray:
    truth[:, 4] *= 1.01
    return truth


def one_head(truth: np.ndarray) -> np.ndarray:
    truth[:, 1] += 0.01
    return truth


def own_numbers(truth: np.ndarray) -> np.ndarray:
    return truth * (1 + 0.01 * np.sin(np.arange(ROWS) + 1.0))[:, None]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (noise(slice(1, None)), "position 0 agrees, all others differ"),
        (noise(slice(ROWS - 3, None)), "only the last 3 rows"),
        (noise(slice(WINDOW, None)), f"only positions past the window of {WINDOW}"),
        (noise(slice(7, None)), "only from position 7 on"),
        (noise([6]), "only position 6"),
        (noise([6, 8]), "only positions 6, 8"),
        (noise([3, 17]), "only token 5"),
        (noise(slice(PROMPT, None)), "decode steps only"),
        (noise(slice(0, PROMPT)), "prefill steps only"),
        (noise(slice(12, PROMPT)), "padded steps only"),
        (growing, "grows with position"),
        (one_channel, "only channel 4"),
        (lambda truth: 1.5 * truth, "constant ratio 1.5"),
        (own_numbers, "each row is the original's times a number of its own"),
    ],
)
def test_a_shape_is_named(change: Any, text: str) -> None:
    assert any(told.startswith(text) for told in shapes(scene(), seen(change)))


def test_heads_are_named() -> None:
    told = shapes(scene(), seen(one_head, heads=True))
    assert "only heads 1 of 3" in told


@pytest.mark.parametrize("change", [noise(slice(None)), lambda truth: truth])
def test_an_error_without_a_shape_and_no_error_have_none(change: Any) -> None:
    assert shapes(scene(), seen(change)) == ()
