"""RoPE in float64, and the cost of computing it in float32: the floor, row by row.

A head's first elements are rotated in pairs, element i with element i + turned / 2 (the pairing of
GPT-NeoX, https://github.com/EleutherAI/gpt-neox, which transformers calls ``rotate_half``), by the
angle position x frequency (RoFormer, arXiv:2104.09864, equation 34).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgeverify.core.compare import thresholds
from edgeverify.core.noise import RowErrors
from edgeverify.suites.invariants.model import CannotCheckError, Rotary

HALF_ULP = 2.0**-24


class Rotation(Protocol):
    """One implementation of a model's RoPE."""

    @property
    def rotary(self) -> Rotary:
        """RoPE according to the HF config."""

    @property
    def reference(self) -> Rotation:
        """Hugging Face's own rotation for the same config; the object itself if it is that one."""

    def heads(self, which: str, block: int) -> int:
        """Heads of ``q`` or ``k`` in a block."""

    def rotate(
        self, which: str, block: int, vectors: np.ndarray, positions: np.ndarray
    ) -> np.ndarray:
        """Turns row t of ``vectors`` (T, N, H), float32, to ``positions[t]``; the same shape."""


def rotated_exactly(
    rotary: Rotary, vectors: np.ndarray, positions: np.ndarray, *, back: bool = False
) -> np.ndarray:
    """Returns the rotation in float64.

    Args:
        rotary: pairs, frequencies and scaling.
        vectors: (T, N, H).
        positions: (T,).
        back: undo the rotation and its scaling instead.

    Returns:
        (T, N, H) float64.
    """
    angles = np.multiply.outer(positions.astype(np.float64), rotary.frequencies)
    factor = 1 / rotary.scaling if back else rotary.scaling
    cos, sin = np.cos(angles) * factor, np.sin(angles) * (-factor if back else factor)
    return _turn(rotary, vectors.astype(np.float64), cos, sin)


def _turn(rotary: Rotary, vectors: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Turns the pairs of (T, N, H) by cos and sin (T, turned / 2), in the dtype of all three."""
    half = rotary.turned // 2
    first, second = vectors[..., :half], vectors[..., half : rotary.turned]
    cos, sin = cos[:, None], sin[:, None]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return np.concatenate((*turned, vectors[..., rotary.turned :]), axis=-1)


@dataclass(frozen=True)
class Floor:
    """What float32 may cost in a rotation, measured on runs that are equally correct.

    The runs are Hugging Face's own rotary in float32 and the formula with each angle moved by the
    cost of rounding (``_angles_rounded_otherwise``). The second run gives every position a typical
    error of its own, so luck decides for none, and no position uses the floor of a distant one.

    Attributes:
        elements: (T, N, H), the largest absolute error of the runs, per element.
        rows: (T,), the largest of the runs' errors, relative L2, never below rounding to float32.
    """

    elements: np.ndarray
    rows: np.ndarray


def floor_of(
    rotation: Rotation, which: str, block: int, vectors: np.ndarray, positions: np.ndarray
) -> Floor:
    """Measures the floor of rotating ``vectors`` (T, N, H) to ``positions`` (T,).

    Raises:
        CannotCheckError: Hugging Face's own rotary is a function other than the formula.
    """
    rotary, reference = rotation.rotary, rotation.reference
    exact = rotated_exactly(rotary, vectors, positions)
    errors = [exact.astype(np.float32) - exact]
    errors.append(_angles_rounded_otherwise(rotary, vectors, positions) - exact)
    if reference is not rotation:
        independent = np.max([row_norms(error) for error in errors], axis=0)
        errors.append(reference.rotate(which, block, vectors, positions) - exact)
        ratios = RowErrors(row_norms(errors[-1]), independent).ratios(0.0)
        if not ratios.max() <= thresholds("authoring").row:
            raise CannotCheckError(
                "Hugging Face's own rotary does not turn the halves of a head by these "
                f"frequencies: {ratios.max():.3g} floors off at position "
                f"{positions[ratios.argmax()]}"
            )
    rows = np.max([row_norms(error) for error in errors], axis=0) / row_norms(exact)
    return Floor(np.max(np.abs(errors), axis=0), rows)


def _angles_rounded_otherwise(
    rotary: Rotary, vectors: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Returns the rotation in float32, with its exact angles moved by the cost of rounding.

    A frequency is base ** -(2i / turned), and the angle is position x frequency. Each of these
    three values (exponent, frequency, angle) is rounded to float32, by up to half an ulp. The
    exponent's rounding moves the angle, relatively, by ln(frequency) half ulps (with a width that
    is not a power of two; 7 for a base of 1e4 near the last pair), the other two by one each. They
    are independent, so their squares add up; the direction is drawn. A value that float32
    represents exactly costs nothing: the first frequency is 1, so its angle is exact at every
    position.
    """
    exponents = np.arange(rotary.turned // 2) * 2 / rotary.turned
    frequencies = np.array(rotary.frequencies)
    exact = np.multiply.outer(positions.astype(np.float64), frequencies)
    squares = (np.log(frequencies) * _inexact(exponents)) ** 2 + _inexact(frequencies)
    half_ulps = np.sqrt(squares + _inexact(exact))
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=exact.shape)
    moved = exact * (1 + HALF_ULP * signs * half_ulps)
    cos, sin = np.cos(moved) * rotary.scaling, np.sin(moved) * rotary.scaling
    return _turn(rotary, vectors, cos.astype(np.float32), sin.astype(np.float32))


def _inexact(values: np.ndarray) -> np.ndarray:
    """1.0 where float32 does not represent the value exactly, else 0.0."""
    return (values != values.astype(np.float32)).astype(np.float64)


def row_norms(rows: np.ndarray) -> np.ndarray:
    """The L2 norm over all axes but the first, float64."""
    return np.linalg.norm(rows.reshape(len(rows), -1).astype(np.float64), axis=1)
