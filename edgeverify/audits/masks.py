"""Reads an attention mask: which keys a query sees."""

from __future__ import annotations

from typing import Any

import numpy as np

NONE = "none"


def window_of(mask: np.ndarray) -> Any:
    """Reads the window of a causal mask.

    Args:
        mask: (N, N), added to the scores: 0 where query i sees key j, -inf (or another value below
            -1e30, which softmax turns into the same zero) elsewhere.

    Returns:
        ``"none"`` if every query sees all keys up to itself, the number of keys if it sees only
        the latest ones, or a text that describes any other mask.
    """
    visible = mask == 0
    if not ((mask < -1e30) | visible).all():
        return "values other than 0 and -inf"
    rows = np.arange(len(mask))[:, None]
    distance = rows - np.arange(mask.shape[1])[None]
    causal = distance >= 0
    if (visible == causal).all():
        return NONE
    window = int(visible[-1].sum())
    if (visible == (causal & (distance < window))).all():
        return window
    return "a pattern that is no causal window"
