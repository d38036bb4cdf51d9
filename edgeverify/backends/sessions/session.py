"""A session: one conversation on one implementation, with a KV cache that can be read and written.

The session follows the rules that a converted file sets for its caller, so no test does what a
caller must not do:

- The positions of a step are consecutive and begin right after the last real token, because a
  signature uses only the first position to place its rows.
- A chunk that does not fill its signature is padded at its end. The pads' rows lie after the real
  ones, and the next step overwrites them.
- A step, pads included, fits the cache. Otherwise the runtime would move the whole chunk back over
  older rows. The session refuses such a step before the runtime receives it.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from edgeverify.core.errors import CacheFullError, UsageError

# ``kv.{i}.k`` and ``kv.{i}.v`` → (S, N, H) float32; S is the number of cache rows.
Cache: TypeAlias = Mapping[str, np.ndarray]
PAD = 0


class Session(abc.ABC):
    """One conversation. It begins with an empty cache at position 0.

    Attributes:
        name: the implementation, e.g. ``tflite-xnnpack``.
        rows: the number of cache rows.
        lengths: the lengths of the prefill signatures, ascending.
        position: the number of valid cache rows, which is the position of the next token.
        fixed: whether steps have the signatures' lengths and the cache its full length. If not
            (the Hugging Face reference), chunks are not padded and the cache grows.
        batch: rows that ``decode_batch`` takes; 0 if it is not possible.
    """

    fixed = True
    batch = 0

    def __init__(self, name: str, rows: int, lengths: Sequence[int]) -> None:
        self.name, self.rows, self.lengths = name, rows, tuple(sorted(lengths))
        self.position = 0

    def prefill(
        self, tokens: Sequence[int], *, length: int | None = None, pads: Sequence[int] | None = None
    ) -> np.ndarray | None:
        """Feeds a chunk of a prompt.

        Args:
            tokens: at least one id.
            length: length of the signature; None takes the smallest that fits the tokens.
            pads: ids that fill the signature; None takes zeros.

        Returns:
            Logits (T, V) float32 of the real tokens, None if the signature returns none.

        Raises:
            UsageError: there is no such signature, or the tokens do not fit it.
            CacheFullError: the step, pads included, would end past the cache's last row.
        """
        length = self._fitting(len(tokens)) if length is None else length
        if length not in self.lengths or not 0 < len(tokens) <= length:
            raise UsageError(
                f"{len(tokens)} tokens do not go into a prefill of {length}",
                where=self.name,
                expected=f"1 to N tokens for a signature of N in {list(self.lengths)}",
            )
        missing = length - len(tokens)
        filled = [PAD] * missing if pads is None else list(pads)[:missing]
        return self._checked_step(f"prefill_{length}", [*tokens, *filled], len(tokens))

    def decode(self, token: int) -> np.ndarray:
        """Feeds one token.

        Returns:
            Its logits, (V,) float32.

        Raises:
            CacheFullError: the cache has no row left.
        """
        logits = self._checked_step("decode", [token], 1)
        assert logits is not None
        return logits[0]

    def rewind(self, position: int) -> None:
        """Goes back to ``position``. The rows from there on count as unwritten.

        Raises:
            UsageError: ``position`` is not between 0 and the present position.
        """
        if not 0 <= position <= self.position:
            raise UsageError(
                f"cannot go to position {position}",
                where=self.name,
                expected=f"0 to {self.position}, the present one",
            )
        self.position = position

    def reset(self) -> None:
        """Begins a new conversation: position 0, a cache of zeros."""
        self.position = 0
        self._clear()

    @abc.abstractmethod
    def read_cache(self) -> dict[str, np.ndarray]:
        """Returns a copy of the cache: ``kv.{i}.k|v`` → (S, N, H) float32, in forward order.

        If the cache grows, S is the present position.
        """

    @abc.abstractmethod
    def write_cache(self, cache: Cache) -> None:
        """Replaces the cache by one with the shapes that ``read_cache`` returns."""

    def masks_of_step(self, signature: str, tokens: Sequence[int]) -> list[np.ndarray] | None:
        """Returns the masks that reach the attention in a step, (T, S) each, real rows only.

        The session's position does not change.

        Returns:
            None if masks cannot be read at all; an empty list if the model bypasses the place where
            they are read.
        """
        return None

    def decode_batch(
        self, tokens: Sequence[int], caches: Sequence[Cache]
    ) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
        """Runs one decode step of several conversations; the session's position does not change.

        The step runs at the present position.

        Args:
            tokens: one id for each of ``batch`` rows.
            caches: one cache for each row.

        Returns:
            Logits (B, V), and each row's cache after the step.

        Raises:
            UsageError: the implementation has no batch.
        """
        raise UsageError("has no batch", where=self.name)

    @abc.abstractmethod
    def _step(self, signature: str, tokens: list[int], real: int) -> np.ndarray | None:
        """Runs one signature at the present position; returns the logits of its tokens and pads."""

    @abc.abstractmethod
    def _clear(self) -> None:
        """Fills the cache with zeros."""

    def _fitting(self, count: int) -> int:
        return next((n for n in self.lengths if n >= count), self.lengths[-1])

    def _checked_step(self, signature: str, tokens: list[int], real: int) -> np.ndarray | None:
        taken = len(tokens) if self.fixed else real
        if self.position + taken > self.rows:
            raise CacheFullError(
                f"a step of {taken} tokens at position {self.position} ends past the last of "
                f"{self.rows} rows of the KV cache (the runtime would overwrite older rows)",
                where=self.name,
                expected=f"at most {self.rows - self.position} tokens, pads included",
                fix="take a shorter signature, decode one by one, or convert with a longer cache",
            )
        logits = self._step(signature, tokens, real)
        self.position += real
        return None if logits is None else logits[:real]
