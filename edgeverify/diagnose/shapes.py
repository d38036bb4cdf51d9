"""Describes the shapes of errors, whether or not a repair is known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from edgeverify.core.compare import thresholds
from edgeverify.diagnose.scene import Scene, Seen

# An error grows if the last third of the rows errs more than this many times as much as the first,
# and errors and positions rise together (Spearman's rank correlation).
GROWTH, RANK_CORRELATION = 2.0, 0.8
FEW = 8
# A ratio counts as constant up to this relative spread over rows.
SAME_RATIO = 1e-3


def shapes(scene: Scene, seen: Seen) -> tuple[str, ...]:
    """Describes where a tap errs, most informative first; may be empty."""
    row = thresholds("isolated").row
    errors = seen.errors()
    bad = errors.ratios(errors.rms_floor) > row
    if not bad.any():
        return ()
    return tuple(
        text
        for text in (
            *_steps(scene, seen),
            *_rows(scene, seen, bad, errors.error),
            *_token(scene, seen, bad),
            *_parts(seen, row),
            *_ratio(seen),
        )
    )


def _steps(scene: Scene, seen: Seen) -> Iterator[str]:
    if seen.failing.all():
        return
    if np.array_equal(seen.failing, seen.decode):
        yield "decode steps only"
    elif np.array_equal(seen.failing, ~seen.decode):
        yield "prefill steps only"
    padded = np.zeros(len(seen.failing), bool)
    if not seen.tap.startswith("kv."):
        of_padded = {
            position
            for step in scene.case.steps
            if step.length > len(step.tokens)
            for position in range(step.start, step.end)
        }
        padded = np.array([int(position) in of_padded for position in seen.positions])
    if padded.any() and np.array_equal(seen.failing, padded):
        yield "padded steps only"


def _rows(scene: Scene, seen: Seen, bad: np.ndarray, error: np.ndarray) -> Iterator[str]:
    if seen.tap.startswith("kv."):
        wrong = sorted({int(p) for p in seen.positions[bad]})
        if len(wrong) <= FEW:
            yield f"only the cache rows {', '.join(map(str, wrong))}"
        return
    first = int(seen.positions[bad][0])
    window = scene.hf.get("sliding_window")
    if bad[seen.positions >= first].all() and first > seen.positions[0]:
        count = int(bad.sum())
        if first == 1:
            yield "position 0 agrees, all others differ"
        elif window and first == window:
            yield f"only positions past the window of {window}"
        elif count <= FEW:
            yield f"only the last {count} rows"
        else:
            yield f"only from position {first} on"
    elif len(wrong := sorted({int(p) for p in seen.positions[bad]})) <= FEW:
        several = "s" if len(wrong) > 1 else ""
        yield f"only position{several} {', '.join(map(str, wrong))}"
    rows = np.flatnonzero(bad)
    if len(rows) >= 2 * FEW:
        third = len(rows) // 3
        grown = np.median(error[rows[-third:]]) / max(np.median(error[rows[:third]]), 1e-300)
        ranks = np.argsort(np.argsort(error[rows]))
        if grown > GROWTH and np.corrcoef(ranks, np.arange(len(rows)))[0, 1] > RANK_CORRELATION:
            yield f"grows with position ({grown:.2g} times from the first third to the last)"


def _token(scene: Scene, seen: Seen, bad: np.ndarray) -> Iterator[str]:
    """Yields a text if all rows of one token err, and no others."""
    if seen.tap.startswith("kv."):
        return
    tokens = np.array(scene.case.tokens)[seen.positions]
    wrong = set(tokens[bad].tolist())
    if len(wrong) == 1 and bad[tokens == next(iter(wrong))].all() and bad.sum() > 1:
        yield f"only token {wrong.pop()}"


def _parts(seen: Seen, allowed: float) -> Iterator[str]:
    """Yields heads, or channels, that differ while the others agree."""
    difference, truth = (seen.port - seen.truth).numpy(), seen.truth.numpy()
    scale = np.sqrt((truth.reshape(len(truth), -1) ** 2).sum(1))
    limit = allowed * np.maximum(seen.floor, np.sqrt(np.mean(seen.floor**2))) * scale
    if truth.ndim == 3:
        # A head is compared with the whole row's floor, which can hide an error but not invent one.
        wrong = np.flatnonzero((np.sqrt((difference**2).sum(2)) > limit[:, None]).any(0))
        if 0 < len(wrong) < truth.shape[1]:
            yield f"only heads {', '.join(map(str, wrong))} of {truth.shape[1]}"
    flat = np.abs(difference.reshape(len(truth), -1))
    channels = np.flatnonzero((flat > limit[:, None]).any(0))
    rest = np.delete(flat, channels, axis=1)
    rest_agrees = bool((np.sqrt((rest**2).sum(1)) <= limit).all())
    if 0 < len(channels) <= min(FEW, flat.shape[1] - 1) and rest_agrees:
        several = "s" if len(channels) > 1 else ""
        yield f"only channel{several} {', '.join(map(str, channels))}"


def _ratio(seen: Seen) -> Iterator[str]:
    """Yields a text if each row is the original's times the same number."""
    port, truth = seen.port.flatten(1), seen.truth.flatten(1)
    size = truth.square().sum(1)
    if not bool((size > 0).all()):
        return
    ratios = (port * truth).sum(1) / size
    left = (port - ratios[:, None] * truth).norm(dim=1) / size.sqrt()
    floor = torch.from_numpy(np.maximum(seen.floor, np.sqrt(np.mean(seen.floor**2))))
    if not bool((left <= 4 * floor.clamp_min(1e-7) * ratios.abs().clamp_min(1)).all()):
        return
    mean = float(ratios.mean())
    if float((ratios - mean).abs().max()) <= SAME_RATIO * abs(mean - 1):
        yield f"constant ratio {mean:.6g}"
    elif bool(((ratios - 1).abs() > floor).any()):
        yield "each row is the original's times a number of its own"
