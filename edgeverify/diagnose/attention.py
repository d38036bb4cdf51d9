"""``attn.out``: from q, k and v over the KV cache to the output projection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from edgeverify.core import taps
from edgeverify.core.case import Step
from edgeverify.diagnose import attention_changes
from edgeverify.diagnose.cache import row_shift, written_into
from edgeverify.diagnose.fault import Change
from edgeverify.diagnose.scene import Inputs, Scene


@dataclass(frozen=True)
class Attention:
    """softmax(cap(q k^T * scale) + mask) v, times the output projection.

    Attributes:
        weight: (C, N * H).
        bias: (C,), or None.
        scale: of the scores.
        softcap: c of c * tanh(scores / c), or None.
        window: how many keys a query sees, its own included; None for all.
        ahead: how many keys after its own a query sees (-1: not even its own).
        sees: ``past`` as it should be; ``chunk``: all of its own step, too; ``all``: every row of
            the cache, written or not; ``own step``: no key of an earlier step.
        hidden: what is added to the scores that the mask hides.
        groups: ``interleaved``: consecutive query heads share a key head; ``tiled``: head n takes
            key head n modulo their number.
        heads: order in which the heads enter the output projection, or None.
        flattened: ``heads`` as it should be; ``elements``: element by element over the heads;
            ``rows``: (N, T, H) read as (T, N, H).
        written: how far from its place a row is written into the cache.
        written_in: in which steps, see ``row_shift``.
        cap_first: the scores are capped before they are scaled.
        value: which tap is attended to.
        half: a dtype that the cache is kept in between the steps or, with ``half_at_once``, that
            a step's own rows have, too.
        half_at_once: see ``half``.
        lost: the signature whose rows are not kept after its step, or "".
        factor: of the result, before the bias.
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
        """Whether only rows that have been written, unrounded and in place, are seen."""
        return (
            self.written == 0
            and self.written_in == "all"
            and self.half is None
            and not self.lost
            and self.sees in ("past", "own step")
            and self.ahead <= 0
            and self.hidden == float("-inf")
        )

    def mask(
        self, rows: torch.Tensor, starts: torch.Tensor, step: Step | None, size: int
    ) -> torch.Tensor:
        """What is added to the scores, (t, S) float64.

        Args:
            rows: (t,) positions of the queries.
            starts: (t,) where their steps begin.
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


class AttentionOf:
    """The attention of one block."""

    def __init__(self, scene: Scene, block: int) -> None:
        self.scene, self.block = scene, block
        first = scene.case.steps[0].name
        _, _, self.heads, self.dim = scene.oracle[f"{first}/{taps.block(block, 'attn.q')}"].shape
        self.groups = scene.oracle[f"{first}/{taps.block(block, 'attn.k')}"].shape[2]

    def rights(self) -> Iterator[Attention]:
        weight = self.scene.roles.get(self.block, "o")
        if weight is None:
            return
        hf = self.scene.hf
        bias = self.scene.roles.get(self.block, "o_bias")
        scalar = hf.get("query_pre_attn_scalar") or self.dim
        cap = hf.get("attn_logit_softcapping")
        # Whether this layer slides is seen from the oracle.
        for window in dict.fromkeys((hf.get("sliding_window"), None)):
            yield Attention(weight, bias, float(scalar) ** -0.5, cap, window)

    def compute(self, spec: Attention, inputs: Inputs) -> torch.Tensor:
        """Step by step, with a cache whose unwritten rows are zero, as the port has it."""
        q, k, v = (
            inputs.tap(taps.block(self.block, name)) for name in ("attn.q", "attn.k", spec.value)
        )
        mixed = self._at_once(spec, q, k, v, inputs) if spec.needs_no_cache else None
        if mixed is None:
            mixed = self._step_by_step(spec, q, k, v, inputs)
        out = mixed @ spec.weight.to(mixed.dtype).T * spec.factor
        return out if spec.bias is None else out + spec.bias.to(out.dtype)

    def _at_once(
        self, spec: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Inputs
    ) -> torch.Tensor:
        rows = torch.arange(len(q))
        return self._attend(spec, q, k, v, spec.mask(rows, inputs.starts, None, len(k)).to(q.dtype))

    def _step_by_step(
        self, spec: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Inputs
    ) -> torch.Tensor:
        """With a cache whose unwritten rows are zero, as the port has it."""
        size = inputs.case.kv_cache_len
        cache_k = torch.zeros(size, *k.shape[1:], dtype=k.dtype)
        cache_v = torch.zeros(size, *v.shape[1:], dtype=v.dtype)
        parts = []
        for step in inputs.steps:
            rows = torch.arange(step.start, step.end)
            written = row_shift(step, spec.written, spec.written_in)
            kept = cache_k, cache_v
            if spec.half is not None:
                cache_k, cache_v = (c.to(spec.half).to(q.dtype) for c in (cache_k, cache_v))
            cache_k = written_into(cache_k, k[rows], step, written)
            cache_v = written_into(cache_v, v[rows], step, written)
            seen_k, seen_v = cache_k, cache_v
            if spec.half is not None and spec.half_at_once:
                seen_k, seen_v = (c.to(spec.half).to(q.dtype) for c in (cache_k, cache_v))
            starts = torch.full(rows.shape, float(step.start))
            mask = spec.mask(rows, starts, step, size).to(q.dtype)
            parts.append(self._attend(spec, q[rows], seen_k, seen_v, mask))
            if step.signature == spec.lost:
                cache_k, cache_v = kept
        return torch.cat(parts)

    def _attend(
        self,
        spec: Attention,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """(t, N, H), the cache (S, G, H) twice, (t, S) → (t, N * H)."""
        each = self.heads // self.groups
        if spec.groups == "tiled":
            k, v = k.repeat(1, each, 1), v.repeat(1, each, 1)
        else:
            k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
        scores = torch.einsum("tnh,snh->nts", q, k)
        cap = spec.softcap
        if cap is not None and spec.cap_first:
            scores = torch.tanh(scores / cap) * cap * spec.scale
        else:
            scores = scores * spec.scale
            if cap is not None:
                scores = torch.tanh(scores / cap) * cap
        weights = torch.softmax(scores + mask, dim=-1)
        weights = torch.nan_to_num(weights)  # a row that sees nothing
        mixed = torch.einsum("nts,snh->tnh", weights, v)
        if spec.heads is not None:
            mixed = mixed[:, list(spec.heads)]
        if spec.flattened == "elements":
            mixed = mixed.transpose(1, 2)
        elif spec.flattened == "rows":
            mixed = mixed.transpose(0, 1).reshape(mixed.shape)
        return mixed.flatten(1)

    def changes(
        self, right: Attention, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Attention]]:
        return attention_changes.changes(self, right)

    def fitted(
        self, right: Attention, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Attention]]:
        return attention_changes.fitted(self, right, port, rows)
