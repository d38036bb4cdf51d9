"""Lists possible faults of attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, product
from typing import TYPE_CHECKING

import torch

from edgeverify.core import taps
from edgeverify.diagnose import attention_changes, compare_weights, estimate
from edgeverify.diagnose.attention import Attention
from edgeverify.diagnose.cache import (
    ROW_SHIFTS,
    cache_lost_text,
    cache_row_text,
    row_shift,
    written_into,
)
from edgeverify.diagnose.fault import HALVES, Change, apart, changed, name_of, number
from edgeverify.diagnose.scene import Inputs, Scene

if TYPE_CHECKING:
    from edgeverify.diagnose.attention import Attention

# All orders of up to four heads are tried (24); for more heads, only the usual orders.
FEW_HEADS = 4


def changes(of: AttentionOf, right: Attention) -> Iterator[Change[Attention]]:
    """Yields the possible faults that are known beforehand."""
    yield from _weight_changes(of, right)
    yield from _scale_changes(of, right)
    yield from _mask_changes(of, right)
    yield from _head_changes(of, right)
    yield from _cache_changes(of, right)


def _weight_changes(of: AttentionOf, right: Attention) -> Iterator[Change[Attention]]:
    roles, own = of.scene.roles, of.scene.port_weights
    name = roles.name(of.block, "o") or "o_proj"
    weight, bias = own.get(of.block, "o"), own.get(of.block, "o_bias")
    if weight is not None and compare_weights.differs(weight, right.weight):
        told = compare_weights.difference(weight, right.weight, name, roles.state)
        yield Change(
            "weight",
            f"weight of the output projection: {told}",
            replace(right, weight=weight),
            held=True,
        )
    if right.weight.shape[0] == right.weight.shape[1]:
        yield Change(
            "weight.transposed",
            "weight of the output projection transposed → as it is",
            replace(right, weight=right.weight.T),
        )
    if bias is not None and (right.bias is None or not torch.equal(bias, right.bias)):
        told = "one that the original lacks → none"
        if right.bias is not None:
            held = roles.name(of.block, "o_bias") or "its bias"
            told = compare_weights.difference(bias, right.bias, held, roles.state)
        yield Change(
            "bias",
            f"bias of the output projection: {told}",
            replace(right, bias=bias),
            held=True,
        )
    if right.bias is not None:
        text = "bias of the output projection left out → added"
        yield Change("bias", text, replace(right, bias=None))
        text = "bias of the output projection added twice → once"
        yield Change("bias", text, replace(right, bias=2 * right.bias))


def _scale_changes(of: AttentionOf, right: Attention) -> Iterator[Change[Attention]]:
    width = right.weight.shape[0]
    scales = {
        "head_dim ** -0.5": of.dim**-0.5,
        "no scale": 1.0,
        "(hidden / heads) ** -0.5": (width / of.heads) ** -0.5,
        "hidden ** -0.5": width**-0.5,
        "the scale applied twice": right.scale**2,
        "1 / head_dim": 1 / of.dim,
        "the square root applied twice": right.scale**0.5,
        "(hidden / key heads) ** -0.5": (width / of.groups) ** -0.5,
    }
    own = getattr(of.scene.port_weights.config(of.block), "score_scale", None)
    if own is not None:
        scales["the port's score_scale"] = float(own)
    for told, scale in scales.items():
        if abs(scale - right.scale) > 1e-9 * right.scale:
            mine, wanted = apart(scale, right.scale)
            text = f"scale of the scores {mine} ({told}) → {wanted}"
            yield Change("attention.scale", text, replace(right, scale=scale))
    own_cap = getattr(of.scene.port_weights.config(of.block), "logit_softcap", None)
    if right.softcap is not None:
        yield Change(
            "attention.softcap",
            f"softcap of the scores left out → {number(right.softcap)}",
            replace(right, softcap=None),
        )
        yield Change(
            "attention.softcap",
            "scores capped before they are scaled → after",
            replace(right, cap_first=True),
        )
    for cap in dict.fromkeys((own_cap, 50.0, 30.0, of.scene.hf.get("final_logit_softcapping"))):
        if cap and cap != right.softcap:
            target = "none" if right.softcap is None else number(right.softcap)
            yield Change(
                "attention.softcap",
                f"softcap of the scores {number(cap)} → {target}",
                replace(right, softcap=float(cap)),
            )


def _mask_changes(of: AttentionOf, right: Attention) -> Iterator[Change[Attention]]:
    wanted = "none" if right.window is None else str(right.window)
    windows = [of.scene.hf.get("sliding_window")]
    windows += [getattr(of.scene.port_weights.config(of.block), "sliding_window_size", None)]
    if right.window is not None:
        windows = [right.window + 1, right.window - 1, *windows, right.window // 2]
        yield Change(
            "attention.window",
            f"window left out (the layer is taken for a global one) → {wanted}",
            replace(right, window=None),
        )
    for window in dict.fromkeys(windows):
        if window and window != right.window:
            kind = " (the layer is taken for a local one)" if right.window is None else ""
            text = f"window {window}{kind} → {wanted}"
            yield Change("attention.window", text, replace(right, window=window))
    yield Change(
        "mask",
        "mask off by one: a query sees the next position → its own at most",
        replace(right, ahead=1),
    )
    yield Change(
        "mask",
        "mask off by one: a query does not see its own position → it does",
        replace(right, ahead=-1),
    )
    for sees, told in (
        ("chunk", "no causal mask within a step: queries see all of their chunk → the past"),
        ("all", "no mask: queries see every row of the cache, unwritten ones, too → the past"),
        ("own step", "queries see their own step only → the cache of earlier steps, too"),
    ):
        yield Change("mask", told, replace(right, sees=sees))
    for hidden in (-1.0, -10.0, -100.0, -1000.0, 1.0):
        yield Change(
            "mask",
            f"hidden scores get {number(hidden)} added → -inf",
            replace(right, hidden=hidden),
        )


def _head_changes(of: AttentionOf, right: Attention) -> Iterator[Change[Attention]]:
    if 1 < of.groups < of.heads:
        yield Change(
            "attention.groups",
            "key and value heads repeated in turn (repeat) → each for consecutive query heads "
            "(repeat_interleave)",
            replace(right, groups="tiled"),
        )
    yield Change(
        "attention.heads",
        "heads flattened element by element → head by head",
        replace(right, flattened="elements"),
    )
    yield Change(
        "attention.heads",
        "heads and positions not transposed before they are flattened → transposed",
        replace(right, flattened="rows"),
    )
    natural = tuple(range(of.heads))
    orders = {natural[::-1], (*natural[1:], 0), (natural[-1], *natural[:-1])}
    each = of.heads // of.groups
    grid = torch.arange(of.heads).view(of.groups, each)
    orders |= {tuple(grid.T.flatten().tolist()), tuple(grid.flip(0).flatten().tolist())}
    orders |= {tuple(grid.view(each, of.groups).T.flatten().tolist())}
    if of.heads <= FEW_HEADS:
        orders |= set(permutations(natural))
    for order in sorted(orders - {natural}):
        text = f"heads enter the output projection in the order {list(order)} → {list(natural)}"
        yield Change("attention.heads", text, replace(right, heads=order))


def _cache_changes(of: AttentionOf, right: Attention) -> Iterator[Change[Attention]]:
    for written, when in ROW_SHIFTS:
        yield Change(
            "cache.row",
            cache_row_text(written, when),
            replace(right, written=written, written_in=when),
        )
    for lost in of.scene.case.signatures:
        yield Change("cache.lost", cache_lost_text(lost), replace(right, lost=lost))
    for half, at_once in product(HALVES, (False, True)):
        name = name_of(half)
        yield Change(
            "cache.half",
            f"the cache is kept in {name} → float32",
            replace(right, half=half, half_at_once=at_once),
        )
    yield Change(
        "positions",
        "each prefill is taken to start at position 0 (cache rows and mask) → where it is",
        replace(right, sees="restart", written_in="restart"),
    )
    yield Change(
        "attention.values", "keys are attended to → values", replace(right, value="attn.k")
    )


def fitted(
    of: AttentionOf, right: Attention, port: torch.Tensor, rows: torch.Tensor
) -> Iterator[Change[Attention]]:
    inputs = of.scene.inputs(rounded=True, wanted=rows)

    def number_of(name: str, starts: tuple[float, ...]) -> float | None:
        return estimate.fit(
            lambda value: of.compute(changed(right, **{name: value}), inputs)[rows],
            port,
            starts,
        )

    scale = number_of("scale", tuple(right.scale * f for f in (0.1, 0.3, 0.6, 1.0, 1.6, 3.0, 8.0)))
    if scale is not None:
        mine, wanted = apart(scale, right.scale)
        text = f"scale of the scores {mine} (estimated) → {wanted}"
        yield Change("attention.scale", text, replace(right, scale=scale))
    cap = number_of("softcap", (0.5, 1.0, 2.0, 5.0, 15.0, 50.0))
    if cap is not None:
        target = "none" if right.softcap is None else number(right.softcap)
        text = f"softcap of the scores {number(cap)} (estimated) → {target}"
        yield Change("attention.softcap", text, replace(right, softcap=cap))
    for window in range(1, min(len(inputs.case.tokens), 100)):
        if window != right.window:
            wanted = "none" if right.window is None else str(right.window)
            text = f"window {window} → {wanted}"
            yield Change("attention.window", text, replace(right, window=window))


def _placed(rows: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """Returns (count, ...) with the values (R, ...) in their rows and zeros in the others."""
    if len(rows) == count:
        return values
    return values.new_zeros(count, *values.shape[1:]).index_copy_(0, rows, values)


class AttentionOf:
    """The attention of one block, as a sublayer."""

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
        # The oracle's values show whether this layer has a sliding window.
        for window in dict.fromkeys((hf.get("sliding_window"), None)):
            yield Attention(weight, bias, float(scalar) ** -0.5, cap, window)

    def compute(self, spec: Attention, inputs: Inputs) -> torch.Tensor:
        """Computes step by step; unwritten rows of the cache are zero, as in the port."""
        if spec.needs_all_rows:
            inputs = replace(inputs, wanted=None)
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
        rows = torch.arange(len(q)) if inputs.wanted is None else inputs.wanted
        mask = spec.mask(rows, inputs.starts[rows], None, len(k)).to(q.dtype)
        return _placed(rows, self._attend(spec, q[rows], k, v, mask), len(q))

    def _step_by_step(
        self, spec: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: Inputs
    ) -> torch.Tensor:
        """Computes with a cache whose unwritten rows are zero, as in the port."""
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
            read = rows if inputs.wanted is None else rows[torch.isin(rows, inputs.wanted)]
            starts = torch.full(read.shape, float(step.start))
            mask = spec.mask(read, starts, step, size).to(q.dtype)
            mixed = self._attend(spec, q[read], seen_k, seen_v, mask)
            parts.append(_placed(read - step.start, mixed, len(rows)))
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
        """Attends: q (t, N, H), k and v of the cache (S, G, H), mask (t, S) → (t, N * H)."""
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
        weights = torch.nan_to_num(weights)  # for a row that sees no key
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
