"""Finds differences that need no model of the sublayer: a factor, an added vector, an order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from edgeverify.diagnose import estimate
from edgeverify.diagnose.fault import Change, name_of, number
from edgeverify.diagnose.scene import Scene, Seen

SAME_CHANNEL = 1e-3
# A message lists at most this many heads or channels.
FEW = 8
KINDS = (
    "factor",
    "factor.heads",
    "factor.channels",
    "bias.added",
    "order.heads",
    "order.channels",
    "rows",
    "half",
)
Simulation = tuple[Change[Any], Callable[[bool], torch.Tensor]]


def changes(scene: Scene, seen: Seen) -> Iterator[Simulation]:
    """Yields changes that may have been made to the correct values.

    Yields:
        The change, and its result, (R, ...).
    """
    truth, port = seen.truth, seen.port
    for kind, text, values in (
        *_factors(truth, port),
        *_offsets(scene, truth, port),
        *_orders(truth, port),
        *_shifts(truth),
        *_halves(truth, port),
    ):
        yield Change(kind, text, None), partial(_given, values)


def _given(values: torch.Tensor, narrow: bool) -> torch.Tensor:
    return values.float().double() if narrow else values


def _factors(truth: torch.Tensor, port: torch.Tensor) -> Iterator[tuple[str, str, torch.Tensor]]:
    ratio = estimate.factor(port, truth)
    if not bool(port.any()):
        yield "factor", "values are all zero → the original's", 0 * truth
    yield "factor", f"values are {number(ratio)} times the original's → once", ratio * truth
    if truth.dim() == 3:
        by_head = (port * truth).sum((0, 2)) / truth.square().sum((0, 2)).clamp_min(1e-300)
        odd = [i for i, r in enumerate(by_head.tolist()) if abs(r - 1) > 1e-5]
        if 0 < len(odd) < len(by_head):
            told = ", ".join(f"head {i} by {number(float(by_head[i]))}" for i in odd[:FEW])
            yield "factor.heads", f"multiplied: {told} → 1", by_head[:, None] * truth
    flat, right = port.flatten(1), truth.flatten(1)
    by_channel = (flat * right).sum(0) / right.square().sum(0).clamp_min(1e-300)
    odd = [i for i, r in enumerate(by_channel.tolist()) if abs(r - 1) > 1e-5]
    if 0 < len(odd) <= FEW and len(odd) < len(by_channel):
        told = ", ".join(f"channel {i} by {number(float(by_channel[i]))}" for i in odd)
        values = (by_channel * right).view(truth.shape)
        yield "factor.channels", f"multiplied: {told} → 1", values


def _offsets(
    scene: Scene, truth: torch.Tensor, port: torch.Tensor
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yields one vector added to every row, and names the checkpoint's bias if it is one."""
    added = (port - truth).mean(0, keepdim=True)
    size = added.norm()
    if len(truth) < 2 or size == 0:
        return
    told, repair = "a constant vector is added to every row", "none"
    for name, tensor in scene.roles.state.items():
        if tensor.numel() != added.numel():
            continue
        for sign, what, undo in ((1, "added once more", "once"), (-1, "left out", "added")):
            if (added.flatten() - sign * tensor.flatten()).norm() < SAME_CHANNEL * size:
                told, repair = f"{name} {what}", undo
    yield "bias.added", f"{told} → {repair}", truth + added


def _orders(truth: torch.Tensor, port: torch.Tensor) -> Iterator[tuple[str, str, torch.Tensor]]:
    if truth.dim() == 3:
        flat = port.transpose(0, 1).flatten(1).T
        found = estimate.sources(flat, truth.transpose(0, 1).flatten(1).T, SAME_CHANNEL)
        natural = list(range(truth.shape[1]))
        if found is not None and found != natural:
            yield "order.heads", f"heads in the order {found} → {natural}", truth[:, found]
    flat, right = port.flatten(1), truth.flatten(1)
    if len(right) > 2 and right.shape[1] <= 4096:
        found = estimate.sources(flat, right, SAME_CHANNEL)
        if found is not None and found != list(range(right.shape[1])):
            values = right[:, found].view(truth.shape)
            yield "order.channels", "channels in another order → as they are", values


def _shifts(truth: torch.Tensor) -> Iterator[tuple[str, str, torch.Tensor]]:
    for by in (1, -1):
        yield "rows", f"rows shifted by {by:+d} → in place", truth.roll(by, 0)


def _halves(truth: torch.Tensor, port: torch.Tensor) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yields a narrow format if all of the port's values fit it and the original's do not."""
    for half, unit in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)):
        if not torch.equal(port.to(half).double(), port):
            continue
        if torch.equal(truth.float().to(half).double(), truth.float().double()):
            continue
        error = (port - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
        if float(error.max()) < 4 * unit:
            name = name_of(half)
            # The port's own values show the rounding; it cannot be reproduced bit by bit.
            yield "half", f"values have the precision of {name} → float32", port
