"""Models ``logits``: the LM head and its softcap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from edgeverify.core import taps
from edgeverify.diagnose import compare_weights, estimate
from edgeverify.diagnose.fault import HALVES, Change, apart, changed, name_of, number
from edgeverify.diagnose.scene import Inputs, Scene


@dataclass(frozen=True)
class Head:
    """softcap(x W^T + b).

    Attributes:
        weight: (V, C).
        bias: (V,), or None.
        softcap: c of c * tanh(logits / c), or None.
        factor: factor of the logits, before the cap.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None
    factor: float = 1.0


class HeadOf:
    """``logits``, as a sublayer."""

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
        if held is not None and compare_weights.differs(held, right.weight):
            told = compare_weights.difference(held, right.weight, truth, roles.state)
            yield Change("head.weight", f"LM head: {told}", replace(right, weight=held), held=True)
        for role in ("embed", "head"):
            weight, name = roles.get(None, role), roles.name(None, role)
            if weight is not None and name != truth and weight.shape == right.weight.shape:
                text = f"LM head: {name} → {truth}"
                yield Change("head.weight", text, replace(right, weight=weight))
        yield from self._bias_changes(right)
        yield from self._cap_changes(right)
        for half in HALVES:
            name = name_of(half)
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

            def compute(value: float, name: str = name) -> torch.Tensor:
                return self.compute(changed(right, **{name: value}), inputs)[rows]

            value = estimate.fit(compute, port, starts)
            if value is not None:
                wanted = right.softcap if name == "softcap" else 1.0
                mine, target = (number(value), "none") if wanted is None else apart(value, wanted)
                text = f"{label} {mine} (estimated) → {target}"
                yield Change(f"head.{name}", text, changed(right, **{name: value}))

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
            told = "one that the original lacks → none"
            if right.bias is not None:
                name = self.scene.roles.name(None, "head_bias") or "its bias"
                told = compare_weights.difference(held, right.bias, name, self.scene.roles.state)
            yield Change(
                "bias", f"bias of the LM head: {told}", replace(right, bias=held), held=True
            )

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
