"""The contracts of RoPE, at the level of a single rotation of q or k.

The cost of float32 is measured row by row, because it grows with the position: see ``rope_floor``.
A row is one position's heads. The limits on error over floor are those of the authoring leg.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from edgeverify.core.compare import thresholds
from edgeverify.core.noise import RowErrors
from edgeverify.suites.invariants import rope_arguments as arguments
from edgeverify.suites.invariants.model import (
    ROTATION,
    Invariant,
    NotApplicableError,
    Rotary,
    Violation,
)
from edgeverify.suites.invariants.rope_floor import (
    HALF_ULP,
    Rotation,
    floor_of,
    rotated_exactly,
    row_norms,
)

# With u = HALF_ULP: cos and sin to one ulp are off by 2u, a product by u, a sum by u; together 4u
# of |x1 cos| + |x2 sin| <= |x| for each element of a pair. Scaled cos and sin are rounded once
# more, and so was the factor. Measured on the seven ports and on HF: at most 2.4u
# (benchmarks/rope_floor.py).
PAIR_NORM_BOUND = 4 * 2**0.5 * HALF_ULP
SCALED_PAIR_NORM_BOUND = 6 * 2**0.5 * HALF_ULP


def norm(
    rotation: Rotation, *, which: str, block: int, positions: tuple[int, ...], seed: int
) -> None:
    """The norm of each rotated pair is kept, to the rounding of one rotation."""
    rotary = rotation.rotary
    vectors = _draw(rotation, which, block, len(positions), seed)
    seen = _rotated(rotation, which, block, vectors, positions)
    before = _pair_norms(rotary, vectors) * rotary.scaling
    change = np.abs(_pair_norms(rotary, seen) / before - 1)
    _judge_norms(change, rotary, [f"block {block}, {which}, position {p}" for p in positions])


def _judge_norms(change: np.ndarray, rotary: Rotary, where: Sequence[str]) -> None:
    """Refuses relative changes (T, N, turned / 2) larger than rounding explains."""
    bound = PAIR_NORM_BOUND if rotary.scaling == 1 else SCALED_PAIR_NORM_BOUND
    if change.max() <= bound:
        return
    row, head, pair = map(int, np.unravel_index(change.argmax(), change.shape))
    raise Violation(
        f"{where[row]}, head {head}, dimensions {pair} and {pair + rotary.turned // 2}: their "
        f"norm changes by {change.max():.3g}, right is at most {bound:.3g} "
        f"({change.max() / bound:.3g} times that)"
    )


def origin(
    rotation: Rotation, *, which: str, block: int, positions: tuple[int, ...], seed: int
) -> None:
    """Position 0 is the identity, bitwise, wherever it stands among the positions."""
    rows = np.flatnonzero(np.array(positions) == 0)
    vectors = _draw(rotation, which, block, len(positions), seed)
    seen = _rotated(rotation, which, block, vectors, positions)
    right = vectors.copy()
    right[..., : rotation.rotary.turned] *= np.float32(rotation.rotary.scaling)
    _bitwise(seen[rows], right[rows], f"block {block}, {which}", [0] * len(rows), 0)


def share(
    rotation: Rotation, *, which: str, block: int, positions: tuple[int, ...], seed: int
) -> None:
    """Dimensions outside the rotary share pass untouched, bitwise."""
    turned, width = rotation.rotary.turned, rotation.rotary.head_dim
    if turned == width:
        raise NotApplicableError(f"all {width} dimensions of a head are rotated")
    vectors = _draw(rotation, which, block, len(positions), seed)
    seen = _rotated(rotation, which, block, vectors, positions)
    where = f"block {block}, {which}"
    _bitwise(seen[..., turned:], vectors[..., turned:], where, positions, turned)


def reference(
    rotation: Rotation, *, which: str, block: int, positions: tuple[int, ...], seed: int
) -> None:
    """The rotation is Hugging Face's own, within the floor, at every position of the model."""
    at = np.array(positions)
    vectors = _draw(rotation, which, block, len(positions), seed)
    seen = _rotated(rotation, which, block, vectors, positions)
    floor = floor_of(rotation, which, block, vectors, at)
    right = rotated_exactly(rotation.rotary, vectors, at)
    where = [f"block {block}, {which}, position {p}" for p in positions]
    _judge(seen, right, floor.rows * row_norms(right), where)


def compose(
    rotation: Rotation, *, which: str, block: int, pairs: tuple[tuple[int, int], ...], seed: int
) -> None:
    """Rotating by a, then by b, is rotating by a + b; turning back by a gives the vector again.

    Turning back is computed in float64, because an implementation takes no negative positions.
    """
    rotary = rotation.rotary
    a, b = np.array(pairs).T
    vectors = _draw(rotation, which, block, len(pairs), seed)
    by_a = _rotated(rotation, which, block, vectors, a)
    by_both = _rotated(rotation, which, block, by_a, b)
    at_once = _rotated(rotation, which, block, vectors, a + b).astype(np.float64)
    at_once[..., : rotary.turned] *= rotary.scaling  # what is turned twice is scaled twice
    floors = [
        floor_of(rotation, which, block, given, at).rows
        for given, at in ((vectors, a), (by_a, b), (vectors, a + b))
    ]
    back = rotated_exactly(rotary, by_a, a, back=True)
    lost = floors[0] * row_norms(by_a) / rotary.scaling
    where = [f"block {block}, {which}, back from position {p}" for p in a]
    _judge(back, vectors.astype(np.float64), lost, where)
    where = [f"block {block}, {which}, position {p} and {q} on" for p, q in pairs]
    # The three roundings are independent of each other.
    _judge(by_both, at_once, np.sqrt(np.sum(np.square(floors), axis=0)) * row_norms(at_once), where)


def distance(
    rotation: Rotation, *, block: int, pairs: tuple[tuple[int, int], ...], shift: int, seed: int
) -> None:
    """The score of a rotated q and k depends on their distance only.

    With q at a and k at b it is the same as ``shift`` positions further on. Query head n is scored
    against key head n // (query heads per key head).
    """
    a, b = np.array(pairs).T
    q = _draw(rotation, "q", block, len(pairs), seed)
    k = _draw(rotation, "k", block, len(pairs), seed + 1)
    near, near_floor = _scores(rotation, block, q, k, a, b)
    far, far_floor = _scores(rotation, block, q, k, a + shift, b + shift)
    where = [f"block {block}, q at {p + shift} and k at {r + shift}" for p, r in pairs]
    _judge(far, near, row_norms(np.hypot(near_floor, far_floor)), where, what="score of head")


def _scores(
    rotation: Rotation, block: int, q: np.ndarray, k: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The score of q at ``a`` with k at ``b``, and its rounding error, (T, N) each.

    The error is what rounding in the rotations makes of the score. The elements' errors are
    independent of each other, so their squares add up.
    """
    groups = q.shape[1] // k.shape[1]
    rotated, errors = [], []
    for which, vectors, at, times in (("q", q, a, 1), ("k", k, b, groups)):
        seen = _rotated(rotation, which, block, vectors, at).astype(np.float64)
        floor = floor_of(rotation, which, block, vectors, at).elements
        rotated.append(np.repeat(seen, times, axis=1))
        errors.append(np.repeat(floor, times, axis=1))
    scores = np.einsum("tnh,tnh->tn", *rotated)
    squares = (errors[0] * rotated[1]) ** 2 + (errors[1] * rotated[0]) ** 2
    return scores, np.sqrt(squares.sum(axis=-1))


def _draw(rotation: Rotation, which: str, block: int, rows: int, seed: int) -> np.ndarray:
    shape = (rows, rotation.heads(which, block), rotation.rotary.head_dim)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _rotated(
    rotation: Rotation,
    which: str,
    block: int,
    vectors: np.ndarray,
    positions: Sequence[int] | np.ndarray,
) -> np.ndarray:
    """The implementation's rotated vectors, checked to be numbers of the right shape."""
    seen = rotation.rotate(which, block, vectors, np.array(positions))
    where = f"block {block}, {which}"
    if seen.shape != vectors.shape or seen.dtype != np.float32:
        raise Violation(
            f"{where}: rotated to shape {seen.shape}, {seen.dtype}; right is {vectors.shape}, "
            "float32"
        )
    bad = np.argwhere(~np.isfinite(seen))
    if len(bad):
        row, head, dimension = bad[0]
        raise Violation(
            f"{where}, position {positions[row]}, head {head}, dimension {dimension}: "
            f"{seen[row, head, dimension]}; right is a finite number"
        )
    return seen


def _bitwise(
    seen: np.ndarray, right: np.ndarray, where: str, positions: Sequence[int], first: int
) -> None:
    """Refuses (T, N, D) arrays that differ bitwise; ``first`` is the first dimension shown."""
    wrong = np.argwhere(seen != right)
    if len(wrong):
        row, head, dimension = wrong[0]
        got, wanted = seen[row, head, dimension], right[row, head, dimension]
        raise Violation(
            f"{where}, position {positions[row]}, head {head}, dimension {first + dimension}: "
            f"{got!s}, right is {wanted!s} bitwise ({len(wrong)} of {seen.size} elements differ)"
        )


def _judge(
    seen: np.ndarray,
    right: np.ndarray,
    floor: np.ndarray,
    where: Sequence[str],
    what: str = "dimension",
) -> None:
    """Compares rows with the expected ones, within the limits of the authoring leg.

    Args:
        seen, right: (T, ...).
        floor: (T,), the error allowed for a row, absolute L2.
        where: (T,), names the rows.
        what: names the last axis.
    """
    limits = thresholds("authoring")
    ratios = RowErrors(row_norms(seen - right), floor).ratios(0.0)
    rms, allowed = float(np.sqrt(np.mean(ratios**2))), limits.rms_over(len(ratios))
    if ratios.max() <= limits.row and rms <= allowed:
        return
    _refuse(seen, right, ratios, where, what, f"{rms:.3g} over {len(ratios)} rows", allowed)


def _refuse(
    seen: np.ndarray,
    right: np.ndarray,
    ratios: np.ndarray,
    where: Sequence[str],
    what: str,
    rms: str,
    allowed: float,
) -> NoReturn:
    row = int(ratios.argmax())
    off = np.abs(seen[row] - right[row])
    place = np.unravel_index(off.argmax(), off.shape)
    head = f", head {place[0]}" if len(place) == 2 else ""
    raise Violation(
        f"{where[row]}: {ratios[row]:.3g} times the floor, allowed "
        f"{thresholds('authoring').row:g}; rms {rms}, allowed {allowed:.3g}. Worst{head}, {what} "
        f"{place[-1]}: {seen[row][place]:.7g}, right is {right[row][place]:.7g}"
    )


def _pair_norms(rotary: Rotary, vectors: np.ndarray) -> np.ndarray:
    """The norm of each pair, (T, N, turned / 2) float64."""
    half = rotary.turned // 2
    wide = vectors.astype(np.float64)
    return np.hypot(wide[..., :half], wide[..., half : rotary.turned])


ROPE = tuple(
    Invariant(name, holds, drawn, edges, kinds=("reference", "reauthored"), of=ROTATION)
    for name, holds, drawn, edges in (
        ("rope.norm", norm, arguments.positions, arguments.edges),
        ("rope.origin", origin, arguments.with_origin, arguments.origin_edges),
        ("rope.distance", distance, arguments.shifted, arguments.shift_edges),
        ("rope.compose", compose, arguments.sums, arguments.sum_edges),
        ("rope.share", share, arguments.positions, arguments.edges),
        ("rope.reference", reference, arguments.positions, arguments.edges),
    )
)
