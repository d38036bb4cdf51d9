"""The embedding, the norms that stand alone, the LM head and the cache itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch

from edgeverify import taps
from edgeverify.diagnose import compare_weights, estimate
from edgeverify.diagnose.attention import cache_row_text, written_into
from edgeverify.diagnose.fault import Change, number
from edgeverify.diagnose.norms import Norm, norm_changes, right_norms
from edgeverify.diagnose.scene import Inputs, Scene

EPS_STARTS = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1)
HALVES = (torch.bfloat16, torch.float16)


class NormOf:
    """``attn_norm`` of a block, or ``final_norm``."""

    def __init__(self, scene: Scene, block: int | None) -> None:
        self.scene, self.block = scene, block
        self.role = "final_norm" if block is None else "attn_norm"
        last = scene.blocks if block is None else block
        self.before = taps.EMBED if last == 0 else taps.block(last - 1, "out")

    def rights(self) -> Iterator[Norm]:
        for norm in right_norms(self.scene, self.block, self.role):
            if norm is not None:
                yield norm

    def compute(self, spec: Norm, inputs: Inputs) -> torch.Tensor:
        return spec(inputs.tap(self.before))

    def changes(
        self, right: Norm, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Norm]]:
        name = self.scene.roles.name(self.block, self.role) or "its weight"
        own = self.scene.port_weights
        for role, part in ((self.role, "weight"), (f"{self.role}_bias", "bias")):
            held, truth = own.get(self.block, role), getattr(right, part)
            if held is None or truth is None or held.shape != truth.shape:
                continue
            if not torch.equal(held, truth):
                told = compare_weights.difference(held, truth, name, self.scene.roles.state)
                yield Change("norm.weight", f"norm {part} {told}", replace(right, **{part: held}))
        yield from norm_changes(self.scene, self.block, self.role, right)

    def fitted(self, right: Norm, port: torch.Tensor, rows: torch.Tensor) -> Iterator[Change[Norm]]:
        inputs = self.scene.inputs(rounded=True)
        for outside in (False, True):
            spec = replace(right, eps_outside=outside)
            eps = estimate.fit(
                lambda e, spec=spec: self.compute(replace(spec, eps=e), inputs)[rows],
                port,
                EPS_STARTS,
            )
            if eps is not None:
                where = " outside the root" if outside else ""
                text = f"norm eps {number(eps)}{where} (estimated) → {number(right.eps)}"
                yield Change("norm.eps", text, replace(spec, eps=eps))


@dataclass(frozen=True)
class Embedding:
    """A table of (V, C), times a scale.

    Attributes:
        table: (V, C).
        scale: of each row.
        half: a dtype that the result is rounded to.
        half_scale: a dtype that the scale is rounded to.
        shift: added to each token id.
        zero: a token id whose row is zero.
    """

    table: torch.Tensor
    scale: float = 1.0
    half: torch.dtype | None = None
    half_scale: torch.dtype | None = None
    shift: int = 0
    zero: int | None = None


class EmbeddingOf:
    """``embed``."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def rights(self) -> Iterator[Embedding]:
        table = self.scene.roles.get(None, "embed")
        if table is not None:
            yield Embedding(table, table.shape[1] ** 0.5)
            yield Embedding(table)

    def compute(self, spec: Embedding, inputs: Inputs) -> torch.Tensor:
        tokens = (inputs.tokens + spec.shift) % spec.table.shape[0]
        rows = spec.table[tokens].to(inputs.dtype)
        if spec.zero is not None:
            rows = rows * (tokens != spec.zero)[:, None]
        scale = torch.tensor(spec.scale, dtype=inputs.dtype)
        if spec.half_scale is not None:
            scale = scale.to(spec.half_scale).to(inputs.dtype)
        rows = rows * scale
        return rows if spec.half is None else rows.to(spec.half).to(inputs.dtype)

    def changes(
        self, right: Embedding, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Embedding]]:
        width = right.table.shape[1]
        wanted = number(right.scale)
        scales = {
            "left out": 1.0,
            f"{number(width**0.5)} = sqrt(hidden)": width**0.5,
            "applied twice": right.scale**2,
            "1 / sqrt(hidden)": width**-0.5,
            f"{width} = hidden": float(width),
            "the inverse": 1 / right.scale,
        }
        for told, scale in scales.items():
            if abs(scale - right.scale) > 1e-9 * right.scale:
                text = f"embedding scale {told} → {wanted if right.scale != 1 else 'none'}"
                yield Change("embedding.scale", text, replace(right, scale=scale))
        for half in HALVES:
            name = str(half).removeprefix("torch.")
            text = f"embedding scale in {name} → float32"
            yield Change("embedding.scale", text, replace(right, half_scale=half))
            text = f"embedding rounded to {name} → float32"
            yield Change("embedding.half", text, replace(right, half=half))
            text = f"embedding and its scale rounded to {name} → float32"
            yield Change("embedding.half", text, replace(right, half=half, half_scale=half))
            table = right.table.to(half).to(right.table.dtype)
            text = f"embedding table rounded to {name} → float32"
            yield Change("embedding.table", text, replace(right, table=table))
        held = self.scene.port_weights.get(None, "embed")
        name = self.scene.roles.name(None, "embed") or "the table"
        if held is not None and held.shape == right.table.shape:
            if not torch.equal(held, right.table):
                told = compare_weights.difference(held, right.table, name, self.scene.roles.state)
                yield Change("embedding.table", f"table: {told}", replace(right, table=held))
        head = self.scene.roles.get(None, "head")
        if head is not None and head.shape == right.table.shape:
            text = f"table: {self.scene.roles.name(None, 'head')} → {name}"
            yield Change("embedding.table", text, replace(right, table=head))
        for shift in (1, -1):
            text = f"token ids off by {shift:+d} → as they are"
            yield Change("embedding.ids", text, replace(right, shift=shift))
        for token in sorted(set(zero_tokens(self.scene, port, rows))):
            text = f"row of token {token} is zero (padding_idx?) → its weights"
            yield Change("embedding.table", text, replace(right, zero=token))

    def fitted(
        self, right: Embedding, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Embedding]]:
        right_rows = self.compute(right, self.scene.inputs(rounded=True))[rows]
        scale = estimate.factor(port, right_rows) * right.scale
        text = f"embedding scale {number(scale)} (estimated) → {number(right.scale)}"
        yield Change("embedding.scale", text, replace(right, scale=scale))


def zero_tokens(scene: Scene, port: torch.Tensor, rows: torch.Tensor) -> list[int]:
    """The tokens whose rows the port gives as zeros."""
    tokens = torch.tensor(scene.case.tokens)[rows]
    return tokens[(port == 0).flatten(1).all(1)].tolist()


@dataclass(frozen=True)
class Head:
    """softcap(x W^T + b).

    Attributes:
        weight: (V, C).
        bias: (V,), or None.
        softcap: c of c * tanh(logits / c), or None.
        factor: of the logits, before the cap.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None
    factor: float = 1.0


class HeadOf:
    """``logits``."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def rights(self) -> Iterator[Head]:
        roles = self.scene.roles
        cap = self.scene.hf.get("final_logit_softcapping")
        for role in ("head", "embed"):
            weight = roles.get(None, role)
            if weight is not None:
                yield Head(weight, roles.get(None, "head_bias"), cap)

    def compute(self, spec: Head, inputs: Inputs) -> torch.Tensor:
        x = inputs.tap(taps.FINAL_NORM)
        y = x @ spec.weight.to(x.dtype).T
        if spec.bias is not None:
            y = y + spec.bias.to(x.dtype)
        y = y * spec.factor
        return y if spec.softcap is None else torch.tanh(y / spec.softcap) * spec.softcap

    def changes(
        self, right: Head, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Head]]:
        roles, own = self.scene.roles, self.scene.port_weights
        held = own.get(None, "head")
        truth = next(name for name, tensor in roles.state.items() if tensor is right.weight)
        if held is not None and held.shape == right.weight.shape:
            if not torch.equal(held, right.weight):
                told = compare_weights.difference(held, right.weight, truth, roles.state)
                yield Change("head.weight", f"LM head: {told}", replace(right, weight=held))
        for role in ("embed", "head"):
            weight, name = roles.get(None, role), roles.name(None, role)
            if weight is not None and name != truth and weight.shape == right.weight.shape:
                text = f"LM head: {name} → {truth}"
                yield Change("head.weight", text, replace(right, weight=weight))
        yield from self._bias_changes(right)
        yield from self._cap_changes(right)
        for half in HALVES:
            name = str(half).removeprefix("torch.")
            weight = right.weight.to(half).to(right.weight.dtype)
            text = f"LM head rounded to {name} → float32"
            yield Change("head.weight", text, replace(right, weight=weight))
        width = right.weight.shape[1]
        for told, factor in (
            ("sqrt(hidden)", width**0.5),
            ("1 / sqrt(hidden)", width**-0.5),
            ("1 / hidden", 1 / width),
        ):
            text = f"logits multiplied by {told} → as they are"
            yield Change("head.factor", text, replace(right, factor=factor))

    def fitted(self, right: Head, port: torch.Tensor, rows: torch.Tensor) -> Iterator[Change[Head]]:
        inputs = self.scene.inputs(rounded=True)
        for name, label, starts in (
            ("softcap", "softcap of the logits", (0.5, 1.0, 2.0, 5.0, 15.0, 30.0, 60.0)),
            ("factor", "logits multiplied by", (0.1, 0.5, 1.0, 2.0, 8.0)),
        ):
            value = estimate.fit(
                lambda v, name=name: self.compute(replace(right, **{name: v}), inputs)[rows],
                port,
                starts,
            )
            if value is not None:
                wanted = right.softcap if name == "softcap" else 1
                target = "none" if wanted is None else number(wanted)
                text = f"{label} {number(value)} (estimated) → {target}"
                yield Change(f"head.{name}", text, replace(right, **{name: value}))

    def _bias_changes(self, right: Head) -> Iterator[Change[Head]]:
        held = self.scene.port_weights.get(None, "head_bias")
        if right.bias is not None:
            yield Change("bias", "bias of the LM head left out → added", replace(right, bias=None))
            yield Change(
                "bias",
                "bias of the LM head added twice → once",
                replace(right, bias=2 * right.bias),
            )
        if held is not None and (right.bias is None or not torch.equal(held, right.bias)):
            told = "the original has none"
            if right.bias is not None:
                name = self.scene.roles.name(None, "head_bias") or "its bias"
                told = compare_weights.difference(held, right.bias, name, self.scene.roles.state)
            yield Change("bias", f"bias of the LM head: {told}", replace(right, bias=held))

    def _cap_changes(self, right: Head) -> Iterator[Change[Head]]:
        target = "none" if right.softcap is None else number(right.softcap)
        if right.softcap is not None:
            yield Change(
                "head.softcap",
                f"softcap of the logits left out → {target}",
                replace(right, softcap=None),
            )
        own = getattr(self.scene.model.config, "final_logit_softcap", None)
        for cap in dict.fromkeys((own, 30.0, 50.0, self.scene.hf.get("attn_logit_softcapping"))):
            if cap and cap != right.softcap:
                yield Change(
                    "head.softcap",
                    f"softcap of the logits {number(cap)} → {target}",
                    replace(right, softcap=float(cap)),
                )


@dataclass(frozen=True)
class Cache:
    """The cache after each step.

    Attributes:
        written: how far from its place each step's rows are written.
        written_in: ``all`` steps or ``decode`` steps alone.
        source: the tap whose rows are written.
        half: a dtype that the rows are rounded to.
        kept: earlier steps' rows are kept.
    """

    source: str
    written: int = 0
    written_in: str = "all"
    half: torch.dtype | None = None
    kept: bool = True


class CacheOf:
    """``kv.{i}.k`` or ``kv.{i}.v``; its rows are those of every step's cache, joined."""

    def __init__(self, scene: Scene, block: int, which: str) -> None:
        self.scene, self.block, self.which = scene, block, which

    def rights(self) -> Iterator[Cache]:
        yield Cache(f"attn.{self.which}")

    def compute(self, spec: Cache, inputs: Inputs) -> torch.Tensor:
        rows = inputs.tap(taps.block(self.block, spec.source))
        if spec.half is not None:
            rows = rows.to(spec.half).to(rows.dtype)
        size = inputs.case.kv_cache_len
        cache = torch.zeros(size, *rows.shape[1:], dtype=rows.dtype)
        parts = []
        for step in inputs.steps:
            written = spec.written if step.is_decode or spec.written_in == "all" else 0
            before = cache if spec.kept else torch.zeros_like(cache)
            cache = written_into(before, rows[step.start : step.end], step, written)
            parts.append(cache[: step.end])
        return torch.cat(parts)

    def changes(
        self, right: Cache, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Cache]]:
        for written, when in product((-1, 1), ("all", "decode")):
            spec = replace(right, written=written, written_in=when)
            yield Change("cache.row", cache_row_text(written, when), spec)
        other = {"k": "v", "v": "k"}[self.which]
        yield Change(
            "cache.exchanged",
            "the cache's K and V exchanged → apart",
            replace(right, source=f"attn.{other}"),
        )
        for half in HALVES:
            name = str(half).removeprefix("torch.")
            text = f"the cache is kept in {name} → float32"
            yield Change("cache.half", text, replace(right, half=half))
        yield Change(
            "cache.kept", "earlier steps' rows are lost → kept", replace(right, kept=False)
        )

    def fitted(
        self, right: Cache, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Cache]]:
        """A cache has no number that is to be estimated."""
        return iter(())
