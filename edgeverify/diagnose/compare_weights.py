"""Describes how a weight of the port differs from the checkpoint's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from edgeverify.diagnose.fault import HALVES

FEW = 8


def differs(port: torch.Tensor | None, right: torch.Tensor | None) -> bool:
    """Whether both exist with the same shape and different values."""
    if port is None or right is None or port.shape != right.shape:
        return False
    return not torch.equal(port, right)


def difference(
    port: torch.Tensor, right: torch.Tensor, name: str, state: Mapping[str, torch.Tensor]
) -> str:
    """Returns ``what the port has → name``, for two tensors that are known to differ.

    Args:
        port: the port's tensor.
        right: the checkpoint's tensor.
        name: name of ``right`` in the checkpoint.
        state: all of the checkpoint's tensors.
    """
    return f"{_held(port, right, name, state)} → {name}"


def _held(
    port: torch.Tensor, right: torch.Tensor, name: str, state: Mapping[str, torch.Tensor]
) -> str:
    if port.shape != right.shape:
        return f"shape {tuple(port.shape)}"
    for value, told in ((0.0, "all zeros (never loaded?)"), (1.0, "all ones (never loaded?)")):
        if bool((port == value).all()):
            return told
    if port.dim() == 2 and port.shape[0] == port.shape[1] and torch.equal(port, right.T):
        return "transposed"
    for other, tensor in state.items():
        if tensor.shape == port.shape and torch.equal(tensor, port):
            return other
    for dtype in HALVES:
        if torch.equal(port, right.to(dtype).to(right.dtype)):
            return f"rounded to {str(dtype).removeprefix('torch.')}"
    reordered = _reordered(port, right)
    if reordered:
        return reordered
    taken = _taken(port, name, state)
    if taken:
        return taken
    ratio = float((port.double() * right.double()).sum() / right.double().square().sum())
    if torch.allclose(port.double(), ratio * right.double(), rtol=1e-6, atol=0):
        return f"{ratio:.6g} times"
    return _where(port != right)


def _taken(port: torch.Tensor, name: str, state: Mapping[str, torch.Tensor]) -> str:
    """Names the layer's other tensors that all rows come from, or returns ""."""
    layer = re.search(r"\.layers\.\d+\.", name)
    if layer is None or port.dim() != 2:
        return ""
    owner: dict[bytes, str] = {}
    for other, tensor in state.items():
        if layer.group() in other and tensor.dim() == 2 and tensor.shape[1] == port.shape[1]:
            owner |= {row.tobytes(): other for row in tensor.float().numpy()}
    names = [owner.get(row.tobytes()) for row in port.float().contiguous().numpy()]
    if None in names:
        return ""
    return "rows of " + ", ".join(dict.fromkeys(str(found) for found in names))


def _reordered(port: torch.Tensor, right: torch.Tensor) -> str:
    """Describes rows (or columns) that are those of ``right`` in another order, or returns ""."""
    sides = [("rows", port, right)]
    if port.dim() == 2:
        sides.append(("columns", port.T, right.T))
    for told, a, b in sides:
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        keys = torch.linspace(0.3, 1.7, a.shape[1], dtype=torch.float64)
        first, second = ((lines.double() * keys).sum(1).sort().values for lines in (a, b))
        near = 1e-12 * float(keys.sum())
        if a.shape == b.shape and bool(((first - second).abs() <= near).all()):
            return f"its {told} in another order"
    return ""


def _where(differs: torch.Tensor) -> str:
    count = int(differs.sum())
    told = f"{count} of {differs.numel()} values differ"
    if differs.dim() == 2:
        for axis, what in ((1, "row"), (0, "column")):
            lines = differs.any(axis).nonzero().flatten().tolist()
            if len(lines) <= FEW and len(lines) < differs.shape[1 - axis]:
                several = "s" if len(lines) > 1 else ""
                return f"{told}, all in {what}{several} {', '.join(map(str, lines))}"
    elif count <= FEW:
        return f"{told}, at {', '.join(map(str, differs.nonzero().flatten().tolist()))}"
    return told
