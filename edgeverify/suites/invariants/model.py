"""Defines an invariant, what it is tested on, and its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Arguments = Mapping[str, Any]
KINDS = ("reference", "reauthored", "tflite")
SESSIONS, ROTATION = "sessions", "rotation"
# The implementations that have a cache of fixed length, pads, layouts and masks of their own.
FIXED = ("reauthored", "tflite")


class Violation(Exception):  # noqa: N818 - the contract's word, no error of ours
    """An invariant does not hold; the message says what was found, where, and what is right."""


class CannotCheckError(Exception):
    """The invariant applies, but its subject cannot be read or reached; the message says why.

    The result is ``unchecked``, which is never a pass.
    """


class NotApplicableError(Exception):
    """The invariant does not apply to this subject; the message says why."""


NO_ROPE = NotApplicableError("the Hugging Face model has no rotary module")


@dataclass(frozen=True)
class Facts:
    """What a test must know about a model to reach its edges.

    Attributes:
        model: the port's name.
        num_blocks: transformer blocks.
        vocab_size: token ids are below it.
        rows: of the KV cache.
        lengths: of the prefill signatures, ascending.
        windows: per block, how many positions a query sees, including itself; None: all before it.
        rotary: RoPE of the HF config; if there is none to compare with, the error that says why.
        prefill_logits: whether prefills return logits.
    """

    model: str
    num_blocks: int
    vocab_size: int
    rows: int
    lengths: tuple[int, ...]
    windows: tuple[int | None, ...]
    rotary: Rotary | Exception = NO_ROPE
    prefill_logits: bool = True

    @property
    def rope(self) -> Rotary:
        """Returns ``rotary`` if the model has one.

        Raises:
            NotApplicableError: the model has none.
            CannotCheckError: it has one that is not the same at every position or layer.
        """
        if isinstance(self.rotary, Exception):
            raise self.rotary
        return self.rotary


@dataclass(frozen=True)
class Rotary:
    """RoPE according to the HF config.

    Attributes:
        head_dim: width of a head.
        turned: how many leading dimensions are rotated, as halves (i, i + turned / 2).
        frequencies: (turned / 2,), radians per position, computed in float64.
        scaling: factor on cos and sin; 1 except for some scaled kinds.
        max_positions: the model's positions.
    """

    head_dim: int
    turned: int
    frequencies: tuple[float, ...]
    scaling: float
    max_positions: int


@dataclass(frozen=True)
class Invariant:
    """One contract.

    Attributes:
        name: e.g. ``cache.split``.
        holds: called with a subject and the arguments; raises ``Violation``. The first line of its
            docstring is the contract.
        arguments: facts → a Hypothesis strategy of keyword arguments.
        edges: facts → keyword arguments that are tried before any drawn ones.
        kinds: implementation kinds that it applies to.
        of: what ``holds`` is called with: a ``Subject`` of ``sessions``, or a ``rotation``.
    """

    name: str
    holds: Callable[..., None]
    arguments: Callable[[Facts], Any]
    edges: Callable[[Facts], Sequence[Arguments]] = lambda _: ()
    kinds: tuple[str, ...] = KINDS
    of: str = SESSIONS

    def is_for(self, implementation: str) -> bool:
        """Whether it applies to ``reference``, ``reauthored`` or ``tflite-{kernel}``."""
        return implementation.partition("-")[0] in self.kinds

    @property
    def contract(self) -> str:
        """The contract in one sentence."""
        return " ".join((self.holds.__doc__ or "").split("\n\n")[0].split())
