"""Noise floor of a conversation's rows, measured on the reference over a pool of conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgeverify.backends import reference
from edgeverify.core import taps
from edgeverify.core.case import Case, Step, plan_steps
from edgeverify.core.noise import floor_of, widest
from edgeverify.core.store import entries
from edgeverify.core.trace import Trace


def floor_per_position(
    model: Any, case: Case, conversations: Sequence[Sequence[int]], *, of_file: bool
) -> dict[str, np.ndarray]:
    """Returns the largest error of a correct float32 implementation per position, over the pool.

    The reference runs at once and in steps, with RoPE's angles rounded differently and, for a file,
    with its sums taken one term after another (see ``edgeverify.backends.float32``).

    Args:
        model: from ``backends.reference.build``.
        case: gives rows and prefill lengths.
        conversations: token ids, each as long as the cache has rows.
        of_file: whether the floor is a file's.

    Returns:
        ``logits`` and ``kv.{i}.k|v`` → (S,) relative L2 error, float64.
    """
    largest: dict[str, np.ndarray] = {}
    for tokens in conversations:
        rows = _one_conversation(model, case, tuple(tokens), of_file=of_file)
        for tap, row in rows.items():
            largest[tap] = np.maximum(largest.get(tap, 0.0), row)
    return largest


def _one_conversation(
    model: Any, case: Case, tokens: tuple[int, ...], *, of_file: bool
) -> dict[str, np.ndarray]:
    whole = replace(
        case, steps=(Step("all", "", len(tokens), 0, tokens),), greedy=False, prefill_logits=True
    )
    oracle = reference.run_oracle(model, whole).arrays
    runs = [
        reference.run(model, whole)[0].arrays,
        reference.run_otherwise(model, whole, sequential=False).arrays,
        _in_steps(model, case, tokens, whole),
    ]
    if of_file:
        runs.append(reference.run_otherwise(model, whole, sequential=True).arrays)
    wanted = [f"all/{tap}" for tap in _outer_taps(oracle)]
    truth = {key: oracle[key] for key in wanted}
    floor = widest(*(floor_of(truth, run) for run in runs))
    return {taps.split(key)[1]: rows for key, rows in floor.items()}


def _in_steps(
    model: Any, case: Case, tokens: tuple[int, ...], whole: Case
) -> dict[str, np.ndarray]:
    """Runs half of the conversation in chunks and the rest one by one, and joins the results."""
    half = len(tokens) // 2
    steps = plan_steps(tokens[:half], case.prefill_lengths, tokens[half:])
    run, _ = reference.run(model, replace(whole, steps=steps))
    last = steps[-1].name
    parts = [run[f"{step.name}/{taps.LOGITS}"] for step in steps]
    joined = {f"all/{taps.LOGITS}": np.concatenate(parts, axis=1)}
    for key, array in run.arrays.items():
        step, tap = taps.split(key)
        if step == last and tap.startswith("kv."):
            joined[f"all/{tap}"] = array
    return joined


def _outer_taps(run: Any) -> list[str]:
    found = [taps.split(key)[1] for key in run]
    return [tap for tap in found if tap.startswith("kv.") or tap == taps.LOGITS]


def cached_floor(key: Sequence[Any], make: Any, root: Any) -> dict[str, np.ndarray]:
    """Returns the table of ``make``, cached under ``key``."""
    path = entries.cached(
        "floor-per-position",
        entries.digest(*key),
        ".safetensors",
        lambda target: Trace({f"all/{tap}": rows for tap, rows in make().items()}).save(target),
        root=root,
    )
    return {taps.split(key)[1]: rows for key, rows in Trace.load(path).arrays.items()}
