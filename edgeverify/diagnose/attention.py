"""Models ``attn.out``: from q, k and v over the KV cache to the output projection."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgeverify.core.case import Step


@dataclass(frozen=True)
class Attention:
    """softmax(cap(q k^T * scale) + mask) v, times the output projection.

    Attributes:
        weight: (C, N * H).
        bias: (C,), or None.
        scale: factor of the scores.
        softcap: c of c * tanh(scores / c), or None.
        window: how many keys a query sees, its own included; None for all.
        ahead: how many keys after its own a query sees (-1: not even its own).
        sees: ``past`` is correct; ``chunk``: also all keys of its own step; ``all``: every row of
            the cache, written or not; ``own step``: no key of an earlier step.
        hidden: value that is added to the scores that the mask hides.
        groups: ``interleaved``: consecutive query heads share a key head; ``tiled``: head n takes
            key head n modulo their number.
        heads: order in which the heads enter the output projection, or None.
        flattened: ``heads`` is correct; ``elements``: element by element over the heads;
            ``rows``: (N, T, H) read as (T, N, H).
        written: offset of the cache row that is written from its correct place.
        written_in: the steps with that offset, see ``row_shift``.
        cap_first: the scores are capped before they are scaled.
        value: the tap that is used as v.
        half: a dtype to which the cache is rounded between the steps or, with ``half_at_once``, to
            which a step's own rows are rounded, too.
        half_at_once: see ``half``.
        lost: the signature whose rows are lost after its step, or "".
        factor: factor of the result, before the bias.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    softcap: float | None = None
    window: int | None = None
    ahead: int = 0
    sees: str = "past"
    hidden: float = float("-inf")
    groups: str = "interleaved"
    heads: tuple[int, ...] | None = None
    flattened: str = "heads"
    written: int = 0
    written_in: str = "all"
    cap_first: bool = False
    value: str = "attn.v"
    half: torch.dtype | None = None
    half_at_once: bool = False
    lost: str = ""
    factor: float = 1.0

    @property
    def needs_no_cache(self) -> bool:
        """Whether queries see only rows that are written, unrounded and in place."""
        return (
            self.written == 0
            and self.written_in == "all"
            and self.half is None
            and not self.lost
            and self.sees in ("past", "own step")
            and self.ahead <= 0
            and self.hidden == float("-inf")
        )

    @property
    def needs_all_rows(self) -> bool:
        """Whether a row of the result depends on the queries of other rows."""
        return self.flattened == "rows"

    def mask(
        self, rows: torch.Tensor, starts: torch.Tensor, step: Step | None, size: int
    ) -> torch.Tensor:
        """Returns what is added to the scores, (t, S) float64.

        Args:
            rows: (t,) positions of the queries.
            starts: (t,) first positions of their steps.
            step: their common step, for ``chunk``.
            size: S, the number of keys.
        """
        local = self.sees == "restart" and step is not None and not step.is_decode
        query = (rows - starts.long() if local else rows)[:, None]
        key = torch.arange(size)[None]
        visible = key <= query + self.ahead
        if self.sees == "chunk" and step is not None:
            visible = visible | (key < step.start + step.length)
        elif self.sees == "all":
            visible = torch.ones_like(visible)
        elif self.sees == "own step":
            visible = visible & (key >= starts[:, None])
        if self.window is not None:
            visible = visible & (key > query - self.window)
        return torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, self.hidden)
