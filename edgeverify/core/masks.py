"""Computes attention masks as numpy arrays; no other module computes any."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeverify.core.case import Case, Step


def masks_of(
    case: Case,
    step: Step,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """Returns a signature's masks by input name, (1, 1, T, S): 0 where visible, else -inf."""
    if not case.mask_as_input:
        return {}
    kinds = case.mask_kinds
    names = {"mask": kinds[0]} if len(kinds) == 1 else {f"mask_{kind}": kind for kind in kinds}
    # The converter drops a mask that no layer reads; a file without any mask is not of this case.
    taken = names.keys() & shapes.keys() or names.keys()
    return {name: mask(names[name], step, case) for name in sorted(taken)}


def mask(kind: str, step: Step, case: Case) -> np.ndarray:
    """Returns one attention mask, float32 (1, 1, T, S).

    ``global``: key j is visible to query i if j <= i. ``local``: the same, and j > i - window, as
    in transformers' ``sliding_window_overlay`` (masking_utils.py).

    Raises:
        ValueError: the kind is unknown, or a local mask has no window.
    """
    queries = np.arange(step.start, step.start + step.length)[:, None]
    keys = np.arange(case.kv_cache_len)[None, :]
    visible = keys <= queries
    if kind == "local":
        if not case.window:
            raise ValueError("a local mask needs a window")
        visible &= keys > queries - case.window
    elif kind != "global":
        raise ValueError(f"unknown mask kind {kind!r}")
    return np.where(visible, np.float32(0), np.float32(-np.inf))[None, None]
