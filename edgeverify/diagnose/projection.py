"""Models q, k and v: a projection, for some families a norm per head, and for q and k RoPE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations

import torch

from edgeverify.core import taps
from edgeverify.diagnose import compare_weights, estimate
from edgeverify.diagnose.fault import Change, number
from edgeverify.diagnose.norms import Norm, norm_changes, right_norms
from edgeverify.diagnose.rope import BASE_GRID, Rope, right_rope, rope_changes
from edgeverify.diagnose.scene import Inputs, Scene

# Up to this difference, a channel of the port is a channel of the original. float32 products of a
# few thousand terms differ by about 1e-6, two different weight rows by about 1.
SAME_CHANNEL = 1e-3

QK_NORM = "q/k norm"


@dataclass(frozen=True)
class Projection:
    """(T, C) → (T, heads, dim).

    Attributes:
        weight: (heads * dim, C).
        bias: (heads * dim,), or None.
        heads: number of heads of this tensor.
        norm: per head, or None.
        rope: None for v.
        norm_last: the norm comes after the rotation.
        norm_over_all: the norm is over all heads at once.
        factor: factor of the result.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    heads: int
    norm: Norm | None
    rope: Rope | None
    norm_last: bool = False
    norm_over_all: bool = False
    factor: float = 1.0


class ProjectionOf:
    """``attn.q``, ``attn.k`` or ``attn.v`` of one block, as a sublayer."""

    def __init__(self, scene: Scene, block: int, which: str) -> None:
        self.scene, self.block, self.which = scene, block, which
        first = scene.case.steps[0].name
        shape = {w: scene.oracle[f"{first}/{taps.block(block, f'attn.{w}')}"].shape for w in "qkv"}
        self.heads = {w: shape[w][2] for w in "qkv"}
        self.dim = shape["q"][3]

    def rights(self) -> Iterator[Projection]:
        parts = self._checkpoint_parts("")
        if parts is None:
            return
        biases = self._checkpoint_parts("_bias")
        bias = None if biases is None else biases[self.which]
        ropes: list[Rope | None] = [None]
        norms: list[Norm | None] = [None]
        if self.which != "v":
            ropes = list(right_rope(self.scene.hf, self.dim))
            norms = list(right_norms(self.scene, self.block, f"{self.which}_norm"))
        for rope in ropes:
            for norm in norms:
                yield Projection(parts[self.which], bias, self.heads[self.which], norm, rope)

    def compute(self, spec: Projection, inputs: Inputs) -> torch.Tensor:
        x = inputs.tap(taps.block(self.block, "attn_norm"))
        y = x @ spec.weight.to(x.dtype).T
        if spec.bias is not None:
            y = y + spec.bias.to(x.dtype)
        if spec.norm is not None and spec.norm_over_all:
            weight = spec.norm.weight
            wide = None if weight is None else weight.repeat(spec.heads)
            y = replace(spec.norm, weight=wide)(y)
        y = y.unflatten(-1, (spec.heads, -1))
        before = spec.norm if spec.norm is not None and not spec.norm_over_all else None
        if before is not None and not spec.norm_last:
            y = before(y)
        if spec.rope is not None:
            y = spec.rope(y, inputs)
        if before is not None and spec.norm_last:
            y = before(y)
        return y * spec.factor

    def changes(
        self, right: Projection, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Projection]]:
        yield from self._weight_changes(right)
        if right.rope is not None:
            own = self.scene.port_weights.config(self.block)
            for change in rope_changes(right.rope, self.dim, own):
                yield Change(change.kind, change.text, replace(right, rope=change.spec))
        yield from self._norm_changes(right)
        yield from self._order_changes(right, port, rows)

    def _checkpoint_parts(self, kind: str) -> dict[str, torch.Tensor] | None:
        roles = self.scene.roles
        fused = roles.get(self.block, f"qkv{kind}")
        if fused is not None:
            counts = [self.heads[w] * self.dim for w in "qkv"]
            if sum(counts) != fused.shape[0]:
                return None
            return dict(zip("qkv", fused.split(counts), strict=True))
        found = {w: roles.get(self.block, f"{w}{kind}") for w in "qkv"}
        return (
            {w: t for w, t in found.items() if t is not None}
            if all(t is not None for t in found.values())
            else None
        )

    def _port_parts(self, kind: str) -> dict[str, torch.Tensor] | None:
        fused = self.scene.port_weights.get(self.block, f"qkv{kind}")
        counts = [self.heads[w] * self.dim for w in "qkv"]
        if fused is None or fused.shape[0] != sum(counts):
            return None
        return dict(zip("qkv", fused.split(counts), strict=True))

    def _weight_changes(self, right: Projection) -> Iterator[Change[Projection]]:
        which, roles = self.which, self.scene.roles
        weights, biases = self._port_parts(""), self._port_parts("_bias")
        name = roles.name(self.block, which) or f"{which} of {roles.name(self.block, 'qkv')}"
        if weights is not None and not torch.equal(weights[which], right.weight):
            told = compare_weights.difference(weights[which], right.weight, name, roles.state)
            yield Change(
                "weight", f"weight {told}", replace(right, weight=weights[which]), held=True
            )
        if biases is not None and (
            right.bias is None or not torch.equal(biases[which], right.bias)
        ):
            told = "a bias that the original lacks → none"
            if right.bias is not None:
                bias_name = roles.name(self.block, f"{which}_bias") or f"{which}'s bias"
                told = compare_weights.difference(biases[which], right.bias, bias_name, roles.state)
            yield Change("bias", f"bias {told}", replace(right, bias=biases[which]), held=True)
        if right.bias is not None:
            yield Change("bias", "bias left out → added", replace(right, bias=None))
            yield Change("bias", "bias added twice → once", replace(right, bias=2 * right.bias))
        if right.weight.shape[0] == right.weight.shape[1]:
            yield Change(
                "weight.transposed",
                "weight transposed → as it is",
                replace(right, weight=right.weight.T),
            )

    def _norm_changes(self, right: Projection) -> Iterator[Change[Projection]]:
        if right.norm is None:
            return
        label = QK_NORM
        role = f"{self.which}_norm"
        yield Change(
            "norm.place",
            f"{label} after RoPE → before",
            replace(right, norm_last=True),
        )
        yield Change(
            "norm.place",
            f"{label} over all heads at once → per head",
            replace(right, norm_over_all=True),
        )
        for change in norm_changes(self.scene, self.block, role, right.norm, label):
            yield Change(change.kind, change.text, replace(right, norm=change.spec))

    def _order_changes(
        self, right: Projection, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Projection]]:
        """Yields other rows of the fused weight, by known orders and by the port's channels."""
        parts = self._checkpoint_parts("")
        if parts is None:
            return
        biases = self._checkpoint_parts("_bias")
        order = {w: torch.arange(self.heads[w] * self.dim) for w in "qkv"}
        offset, base = {}, 0
        for w in "qkv":
            offset[w], base = base, base + len(order[w])
        fused = torch.cat([parts[w] for w in "qkv"])
        fused_bias = None if biases is None else torch.cat([biases[w] for w in "qkv"])

        def taking(chosen: torch.Tensor) -> Projection:
            return replace(
                right,
                weight=fused[chosen],
                bias=None if fused_bias is None else fused_bias[chosen],
            )

        count = len(order[self.which])
        for told, chosen in self._known_orders(offset):
            if len(chosen) == count:
                yield Change("qkv.order", told, taking(chosen))
        if right.norm is not None:
            return
        inputs = self.scene.inputs(rounded=True)
        x = inputs.tap(taps.block(self.block, "attn_norm"))
        linear = x @ fused.to(x.dtype).T
        if fused_bias is not None:
            linear = linear + fused_bias.to(x.dtype)
        flat = port
        if right.rope is not None:
            flat = _unrotated(right.rope, port, rows, inputs)
        found = estimate.sources(flat.flatten(1), linear[rows], SAME_CHANNEL)
        if found is not None:
            chosen = torch.tensor(found)
            if not torch.equal(chosen, order[self.which] + offset[self.which]):
                told = self._describe(chosen - offset[self.which])
                yield Change("qkv.order", told, taking(chosen))

    def _known_orders(self, offset: dict[str, int]) -> Iterator[tuple[str, torch.Tensor]]:
        which, dim = self.which, self.dim
        total = sum(self.heads.values()) * dim
        for order in permutations("qkv"):
            if order == tuple("qkv"):
                continue
            start = sum(self.heads[w] * dim for w in order[: order.index(which)])
            count = self.heads[which] * dim
            text = f"fused tensor split as {', '.join(order)} → q, k, v"
            yield text, torch.arange(start, start + count)
        groups = self.heads["k"]
        per_group = self.heads["q"] // groups
        rows = torch.arange(total).view(groups, per_group + 2, dim)
        cut = {"q": rows[:, :per_group], "k": rows[:, -2:-1], "v": rows[:, -1:]}[which]
        yield "fused tensor split group by group → in blocks", cut.flatten()
        inner = torch.arange(dim).view(2, dim // 2).T.flatten()
        for told, within in (
            ("halves → interleaved", inner.argsort()),
            ("interleaved → halves", inner),
        ):
            heads = torch.arange(self.heads[which])[:, None] * dim
            text = f"rows of each head permuted for the other RoPE ({told}) → as they are"
            yield text, (heads + within).flatten() + offset[which]

    def _describe(self, chosen: torch.Tensor) -> str:
        """Describes which rows of its own block, (heads * dim,), the port took.

        Rows of other blocks are out of range.
        """
        heads, dim = self.heads[self.which], self.dim
        if bool(((chosen < 0) | (chosen >= heads * dim)).any()):
            return f"{self.which} takes rows of another part of the fused tensor → its own"
        table = chosen.view(heads, dim)
        within = torch.arange(dim)
        if bool((table % dim == within).all()) and bool(
            (table // dim == table[:, :1] // dim).all()
        ):
            order = [int(row[0]) // dim for row in table]
            return f"heads of {self.which} in the order {order} → {list(range(heads))}"
        if bool((table // dim == torch.arange(heads)[:, None]).all()):
            return f"the elements within the heads of {self.which} are permuted → as they are"
        return f"the rows of {self.which} are permuted → as they are"

    def fitted(
        self, right: Projection, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Projection]]:
        inputs = self.scene.inputs(rounded=True)
        rope, norm = right.rope, right.norm
        if rope is not None:
            base = estimate.fit(
                lambda b: self.compute(replace(right, rope=replace(rope, base=b)), inputs)[rows],
                port,
                BASE_GRID,
            )
            if base is not None:
                text = f"rotary base {number(base)} (estimated) → {number(rope.base)}"
                spec = replace(right, rope=replace(rope, base=base))
                yield Change("rope.base", text, spec)
            stretch = estimate.fit(
                lambda s: self.compute(replace(right, rope=replace(rope, stretch=s)), inputs)[rows],
                port,
                (0.9, 1.0, 1.1),
            )
            if stretch is not None:
                text = f"RoPE positions multiplied by {number(stretch)} (estimated) → as they are"
                spec = replace(right, rope=replace(rope, stretch=stretch))
                yield Change("rope.positions", text, spec)
        if norm is not None:
            eps = estimate.fit(
                lambda e: self.compute(replace(right, norm=replace(norm, eps=e)), inputs)[rows],
                port,
                (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1),
            )
            if eps is not None:
                label = QK_NORM
                text = f"{label} eps {number(eps)} (estimated) → {number(norm.eps)}"
                spec = replace(right, norm=replace(norm, eps=eps))
                yield Change("norm.eps", text, spec)


def _unrotated(rope: Rope, port: torch.Tensor, rows: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Reverts the rotation of (R, N, H)."""
    whole = torch.zeros(len(inputs.case.tokens), *port.shape[1:], dtype=port.dtype)
    whole[rows] = port
    return replace(rope, turn=-rope.turn)(whole, inputs)[rows]
