"""Models a norm, and lists its possible faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from edgeverify.core import taps
from edgeverify.diagnose import compare_weights, estimate
from edgeverify.diagnose.fault import HALVES, Change, apart, changed, name_of, number
from edgeverify.diagnose.scene import Inputs, Scene

RMS, LAYER, NONE = "RMSNorm", "LayerNorm", "none"
# Values that libraries and published configs use.
EPS_STARTS = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1)
USUAL_EPS = (1e-5, 1e-6, 1e-8, 1e-12, 0.0, 1e-3, 1e-4, 1e-7, 2e-5)


@dataclass(frozen=True)
class Norm:
    """RMSNorm (arXiv 1910.07467) or LayerNorm over the last axis, times ``offset + weight``.

    Attributes:
        kind: ``RMS``, ``LAYER`` or ``NONE``, which leaves the values unchanged.
        weight: (C,), or None for ones without an offset.
        bias: (C,), or None.
        eps: added to the mean square (the variance), under the root.
        offset: 1 if the checkpoint has w for a factor of 1 + w (Gemma).
        eps_outside: eps is added to the root instead.
        scaled_only: the weight is applied, the division is not.
        half: a dtype that the values are rounded to before and after.
    """

    kind: str
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float
    offset: float = 0.0
    eps_outside: bool = False
    scaled_only: bool = False
    half: torch.dtype | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the norm, (..., C) → the same shape."""
        if self.kind == NONE:
            return x
        if self.half is not None:
            x = x.to(self.half).to(x.dtype)
        if not self.scaled_only:
            if self.kind == LAYER:
                x = x - x.mean(-1, keepdim=True)
            square = x.pow(2).mean(-1, keepdim=True)
            x = x / (square.sqrt() + self.eps if self.eps_outside else (square + self.eps).sqrt())
        if self.weight is not None:
            x = x * (self.offset + self.weight.to(x.dtype))
        if self.bias is not None:
            x = x + self.bias.to(x.dtype)
        return x if self.half is None else x.to(self.half).to(x.dtype)


def hf_eps(scene: Scene) -> float:
    """Returns the HF config's epsilon; 1e-6 is OpenELM's, whose config has none."""
    return float(scene.hf.get("rms_norm_eps", scene.hf.get("layer_norm_eps", 1e-6)))


def right_norms(scene: Scene, layer: int | None, role: str) -> Iterator[Norm | None]:
    """Yields the ways in which a correct norm may read its tensors; None if there is no norm."""
    weight = scene.roles.get(layer, role)
    if weight is None:
        yield None
        return
    bias = scene.roles.get(layer, f"{role}_bias")
    eps = hf_eps(scene)
    for kind in (LAYER, RMS) if bias is not None else (RMS, LAYER):
        for offset in (0.0, 1.0):
            yield Norm(kind, weight, bias, eps, offset)


def norm_changes(
    scene: Scene, layer: int | None, role: str, right: Norm, label: str = "norm"
) -> Iterator[Change[Norm]]:
    """Yields possible faults of a norm.

    Args:
        scene: for the port's own values and the checkpoint's other norms.
        layer: the block, or None for the final norm.
        role: role of the norm's weight.
        right: the correct norm.
        label: the norm's name in messages.
    """
    yield from _held_changes(scene, layer, role, right, label)
    own = scene.port_weights.eps(layer, role)
    for eps in dict.fromkeys((*((own,) if own is not None else ()), *USUAL_EPS)):
        if eps != right.eps:
            text = f"{label} eps {number(eps)} → {number(right.eps)}"
            yield Change("norm.eps", text, replace(right, eps=eps))
    yield Change(
        "norm.eps_outside",
        f"{label} eps outside the root → under it",
        replace(right, eps_outside=True),
    )
    if right.weight is not None:
        read = {0.0: "w", 1.0: "1 + w"}
        other = 1.0 - right.offset
        yield Change(
            "norm.offset",
            f"{label} factor {read[other]} → {read[right.offset]}",
            replace(right, offset=other),
        )
    other_kind = LAYER if right.kind == RMS else RMS
    for bias in {id(right.bias): right.bias, id(None): None}.values():
        yield Change(
            "norm.kind",
            f"{label} {other_kind} → {right.kind}",
            replace(right, kind=other_kind, bias=bias),
        )
    yield Change("norm.missing", f"{label} left out → {right.kind}", replace(right, kind=NONE))
    yield Change(
        "norm.missing",
        f"{label}: its weight alone is applied → {right.kind}",
        replace(right, scaled_only=True),
    )
    if right.bias is not None:
        yield Change("norm.bias", f"{label} bias left out → added", replace(right, bias=None))
    if right.weight is not None:
        yield from _weight_changes(scene, layer, role, right, label)


def _held_changes(
    scene: Scene, layer: int | None, role: str, right: Norm, label: str
) -> Iterator[Change[Norm]]:
    """Yields the tensors of the port's norm that differ from the checkpoint's."""
    for full_role, part in ((role, "weight"), (f"{role}_bias", "bias")):
        held, truth = scene.port_weights.get(layer, full_role), getattr(right, part)
        if held is not None and compare_weights.differs(held, truth):
            name = scene.roles.name(layer, full_role) or f"its {part}"
            told = compare_weights.difference(held, truth, name, scene.roles.state)
            spec = changed(right, **{part: held})
            yield Change(f"norm.{part}", f"{label} {part} {told}", spec, held=True)


def _weight_changes(
    scene: Scene, layer: int | None, role: str, right: Norm, label: str
) -> Iterator[Change[Norm]]:
    assert right.weight is not None
    own_name = scene.roles.name(layer, role)
    # With an offset, ones mean a factor of two, and zeros mean the identity.
    fills = {"all ones": torch.ones_like(right.weight), "all zeros": torch.zeros_like(right.weight)}
    for text, fill in fills.items():
        yield Change(
            "norm.weight",
            f"{label} weight {text} → {own_name} (never loaded?)",
            replace(right, weight=fill),
        )
    near = [layer] if layer is None else [layer, layer - 1, layer + 1, None]
    for other in near:
        for name, weight in scene.roles.norm_weights(other):
            if name != own_name and weight.shape == right.weight.shape:
                yield Change(
                    "norm.weight",
                    f"{label} weight {name} → {own_name}",
                    replace(right, weight=weight),
                )
    for half in HALVES:
        name = name_of(half)
        yield Change(
            "norm.half", f"{label} computed in {name} → float32", replace(right, half=half)
        )
        yield Change(
            "norm.weight",
            f"{label} weight rounded to {name} → float32",
            replace(right, weight=right.weight.to(half).to(right.weight.dtype)),
        )


class NormOf:
    """``attn_norm`` of a block, or ``final_norm``, as a sublayer."""

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
        yield from norm_changes(self.scene, self.block, self.role, right)

    def fitted(self, right: Norm, port: torch.Tensor, rows: torch.Tensor) -> Iterator[Change[Norm]]:
        inputs = self.scene.inputs(rounded=True)
        for outside in (False, True):
            spec = replace(right, eps_outside=outside)

            def compute(eps: float, spec: Norm = spec) -> torch.Tensor:
                return self.compute(replace(spec, eps=eps), inputs)[rows]

            eps = estimate.fit(compute, port, EPS_STARTS)
            if eps is not None:
                where = " outside the root" if outside else ""
                mine, wanted = apart(eps, right.eps)
                text = f"norm eps {mine}{where} (estimated) → {wanted}"
                yield Change("norm.eps", text, replace(spec, eps=eps))
