"""Models ``ff.out``: the feed-forward, gated or not, from its normed input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from edgeverify.core import taps
from edgeverify.diagnose import compare_weights
from edgeverify.diagnose.fault import Change, changed
from edgeverify.diagnose.scene import Inputs, Scene

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "tanh GELU": lambda x: functional.gelu(x, approximate="tanh"),
    "exact GELU": functional.gelu,
    "quick GELU": lambda x: x * torch.sigmoid(1.702 * x),
    "ReLU": functional.relu,
    "squared ReLU": lambda x: functional.relu(x).square(),
    "no activation": lambda x: x,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "leaky ReLU": functional.leaky_relu,
    "ELU": functional.elu,
    "mish": functional.mish,
}


@dataclass(frozen=True)
class FeedForward:
    """down(act(gate(x)) * up(x)), or down(act(up(x))) if there is no gate.

    Attributes:
        gate: (I, C): the activation's input.
        up: (I, C), or None.
        down: (C, I).
        gate_bias: (I,), or None; likewise ``up_bias`` and, (C,), ``down_bias``.
        act: a key of ``ACTIVATIONS``.
        on: what the activation is applied to: ``gate``, ``up``, ``both`` or ``product``.
        joined: how gate and up are combined: ``product``, ``sum`` or only the ``gate``.
    """

    gate: torch.Tensor
    up: torch.Tensor | None
    down: torch.Tensor
    gate_bias: torch.Tensor | None
    up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    act: str
    on: str = "gate"
    joined: str = "product"


class FeedForwardOf:
    """The feed-forward of one block, as a sublayer."""

    def __init__(self, scene: Scene, block: int) -> None:
        self.scene, self.block = scene, block

    def rights(self) -> Iterator[FeedForward]:
        get = lambda role: self.scene.roles.get(self.block, role)  # noqa: E731
        gate, up, down = get("gate"), get("up"), get("down")
        gate_bias, up_bias = get("gate_bias"), get("up_bias")
        fused = get("gate_up")
        if fused is not None and down is not None:
            gate, up = fused, None
            if fused.shape[0] == 2 * down.shape[1]:
                gate, up = fused.chunk(2)
        elif gate is None:
            gate, up, gate_bias, up_bias = up, None, up_bias, None
        if gate is None or down is None:
            return
        for act in ACTIVATIONS:
            yield FeedForward(gate, up, down, gate_bias, up_bias, get("down_bias"), act)

    def compute(self, spec: FeedForward, inputs: Inputs) -> torch.Tensor:
        x = inputs.tap(taps.block(self.block, "ff_norm"))
        act = ACTIVATIONS[spec.act]
        gate = _linear(x, spec.gate, spec.gate_bias)
        if spec.up is None:
            return _linear(act(gate), spec.down, spec.down_bias)
        up = _linear(x, spec.up, spec.up_bias)
        if spec.on in ("gate", "both"):
            gate = act(gate)
        if spec.on in ("up", "both"):
            up = act(up)
        hidden = {"product": gate * up, "sum": gate + up, "gate": gate, "up": up}[spec.joined]
        if spec.on == "product":
            hidden = act(hidden)
        return _linear(hidden, spec.down, spec.down_bias)

    def changes(
        self, right: FeedForward, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[FeedForward]]:
        for act in ACTIVATIONS:
            if act != right.act:
                yield Change("ff.activation", f"{act} → {right.act}", replace(right, act=act))
        if right.up is not None:
            yield from _gate_changes(right)
        yield from self._weight_changes(right)
        for role in ("gate", "up", "down"):
            bias = getattr(right, f"{role}_bias")
            if bias is not None:
                hf_role = "up" if right.up is None and role == "gate" else role
                name = self.scene.roles.name(self.block, f"{hf_role}_bias") or f"{role}'s bias"
                text = f"feed-forward: bias {name} left out → added"
                yield Change("bias", text, changed(right, **{f"{role}_bias": None}))
                text = f"feed-forward: bias {name} added twice → once"
                yield Change("bias", text, changed(right, **{f"{role}_bias": 2 * bias}))
        biases = ("gate_bias", "up_bias", "down_bias")
        if sum(getattr(right, bias) is not None for bias in biases) > 1:
            text = "feed-forward: all biases left out → added"
            yield Change("bias", text, changed(right, **dict.fromkeys(biases)))

    def fitted(
        self, right: FeedForward, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[FeedForward]]:
        """Yields nothing: a feed-forward has no number to estimate."""
        return iter(())

    def _weight_changes(self, right: FeedForward) -> Iterator[Change[FeedForward]]:
        """Yields the tensors of the port's modules as faults, one by one and all together."""
        own, roles = self.scene.port_weights, self.scene.roles
        held: dict[str, torch.Tensor | None] = {
            name: own.get(self.block, name)
            for name in ("gate", "gate_bias", "up", "up_bias", "down", "down_bias")
        }
        fused = roles.name(self.block, "gate_up")
        w1 = held["gate"]
        if right.up is not None and w1 is not None and w1.shape[0] == 2 * right.gate.shape[0]:
            held["gate"], held["up"] = w1.chunk(2)
            yield from _fused_changes(right, w1)
        told, fields = [], {}
        for role, tensor in held.items():
            truth: torch.Tensor | None = getattr(right, role)
            if tensor is None or (truth is not None and torch.equal(tensor, truth)):
                continue
            if truth is None:
                told.append(f"a bias on {role.removesuffix('_bias')} → none")
            elif truth.shape != tensor.shape:
                continue
            else:
                hf_role = role.replace("gate", "up") if right.up is None else role
                name = roles.name(self.block, hf_role) or f"{role} of {fused}"
                told.append(compare_weights.difference(tensor, truth, name, roles.state))
            fields[role] = tensor
        if fields:
            text = "feed-forward: weight " + "; ".join(told)
            yield Change("weight", text, changed(right, **fields), held=True)


def _gate_changes(right: FeedForward) -> Iterator[Change[FeedForward]]:
    yield Change("ff.gate", "gate and up exchanged → gate is activated", replace(right, on="up"))
    for on, told in (("both", "activation on gate and up"), ("product", "activation on gate * up")):
        yield Change("ff.gate", f"{told} → on the gate alone", replace(right, on=on))
    for joined, told in (
        ("sum", "gate and up added"),
        ("gate", "up left out"),
        ("up", "gate left out"),
    ):
        yield Change("ff.gate", f"{told} → multiplied", replace(right, joined=joined))


def _fused_changes(right: FeedForward, fused: torch.Tensor) -> Iterator[Change[FeedForward]]:
    yield Change(
        "ff.gate",
        "fused gate and up split row by row → in halves",
        replace(right, gate=fused[0::2], up=fused[1::2]),
    )


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    y = x @ weight.to(x.dtype).T
    return y if bias is None else y + bias.to(x.dtype)
