"""Models rotary position embedding (arXiv 2104.09864), and lists its possible faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from edgeverify.diagnose.fault import HALVES, Change, name_of, number
from edgeverify.diagnose.scene import Inputs

USUAL_BASES = (1e4, 1e5, 5e5, 1e6, 1e3, 13e4, 15e4, 2e6)
USUAL_SHARES = (1.0, 0.5, 0.4, 0.25, 0.75)
# Spaced closely enough that a fit can start from one of them (see ``estimate.fit``).
BASE_GRID = tuple(10 ** (2 + index / 12) for index in range(73))


@dataclass(frozen=True)
class Rope:
    """Rotation of the first ``rotated`` elements of each head.

    Attributes:
        base: the angle of pair i at position p is p * base ** (-2i / rotated).
        rotated: how many elements are rotated; 0 for none.
        interleaved: pairs are (0, 1), (2, 3), ..., not (0, rotated / 2), ...
        shift: added to every position.
        stretch: factor of every position.
        local: positions restart at each ``prefill`` step, at ``all`` steps, or at no step ("").
        turn: -1 reverses the direction.
        last: the last elements are rotated, not the first.
        half: a dtype that cos and sin are rounded to, or, with ``half_angles``, the angles.
        half_angles: see ``half``.
        whole_exponent: exponents are over the whole head, not over the rotated elements.
    """

    base: float
    rotated: int
    interleaved: bool = False
    shift: int = 0
    stretch: float = 1.0
    local: str = ""
    turn: int = 1
    last: bool = False
    half: torch.dtype | None = None
    half_angles: bool = False
    whole_exponent: bool = False

    def __call__(self, x: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """Rotates (T, N, H) → the same shape."""
        if self.rotated == 0:
            return x
        over = x.shape[-1] if self.whole_exponent else self.rotated
        pairs = torch.arange(self.rotated // 2, dtype=x.dtype)
        positions = inputs.positions
        if self.local:
            restarts = inputs.prefill if self.local == "prefill" else torch.ones_like(positions)
            positions = positions - inputs.starts * restarts
        positions = ((positions + self.shift) * self.stretch).to(x.dtype)
        angles = positions[:, None] / self.base ** (2 * pairs / over)
        if self.half is not None:
            # Frameworks compute the angles in float32 before they round.
            narrow = angles.float()
            if self.half_angles:
                narrow = narrow.to(self.half).float()
            cos, sin = narrow.cos(), narrow.sin()
            if not self.half_angles:
                cos, sin = cos.to(self.half), sin.to(self.half)
            cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        else:
            cos, sin = angles.cos(), angles.sin()
        cos, sin = cos[:, None], self.turn * sin[:, None]
        if self.last:
            kept, turned = x[..., : -self.rotated], x[..., -self.rotated :]
        else:
            turned, kept = x[..., : self.rotated], x[..., self.rotated :]
        if self.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        else:
            a, b = turned.chunk(2, dim=-1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        return torch.cat((kept, turned) if self.last else (turned, kept), -1)


def right_rope(hf: Mapping[str, Any], head_dim: int) -> Iterator[Rope]:
    """Yields RoPE as the HF config describes it, in its several spellings."""
    inner = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    base = inner.get("rope_theta", hf.get("rope_theta", hf.get("rope_freq_constant", 10000.0)))
    share = inner.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
    shares = (1.0, 0.5) if share is None else (float(share), 1.0)
    for value in shares:
        yield Rope(float(base), int(value * head_dim))


def rope_changes(right: Rope, head_dim: int, own: Any) -> Iterator[Change[Rope]]:
    """Yields possible faults of the rotation.

    Args:
        right: the correct rotation.
        head_dim: elements per head.
        own: the port's attention config, or None.
    """
    bases = [base for base in (getattr(own, "rotary_base", None), *USUAL_BASES) if base]
    for base in dict.fromkeys(float(base) for base in bases):
        if base != right.base:
            text = f"rotary base {number(base)} → {number(right.base)}"
            yield Change("rope.base", text, replace(right, base=base))
    shares = [s for s in (getattr(own, "rotary_percentage", None), *USUAL_SHARES) if s]
    counts = [int(share * head_dim) for share in shares]
    counts += [right.rotated + 2, right.rotated - 2]
    for count in dict.fromkeys(counts):
        if count != right.rotated and 0 < count <= head_dim and count % 2 == 0:
            text = f"rotary share: {count} of {head_dim} elements rotated → {right.rotated}"
            yield Change("rope.share", text, replace(right, rotated=count))
    yield Change("rope.missing", "RoPE left out → applied", replace(right, rotated=0))
    paired = ("halves", "interleaved pairs")
    yield Change(
        "rope.pairs",
        f"RoPE on {paired[not right.interleaved]} → {paired[right.interleaved]}",
        replace(right, interleaved=not right.interleaved),
    )
    for shift in (1, -1):
        text = f"RoPE positions off by {shift:+d} → as they are"
        yield Change("rope.positions", text, replace(right, shift=shift))
    for local, step in (("prefill", "prefill step"), ("all", "step")):
        yield Change(
            "rope.positions",
            f"RoPE positions restart at each {step} → positions of the conversation",
            replace(right, local=local),
        )
    yield Change("rope.turn", "RoPE turns backwards (-sin) → forwards", replace(right, turn=-1))
    for stretch in (2.0, 0.5, 3.0, 1 / 3, 4.0, 0.25, 8.0, 0.125, 16.0, 0.0625):
        yield Change(
            "rope.positions",
            f"RoPE positions multiplied by {number(stretch)} → as they are",
            replace(right, stretch=stretch),
        )
    if right.rotated < head_dim:
        yield Change(
            "rope.share",
            f"the last {right.rotated} elements rotated → the first",
            replace(right, last=True),
        )
        yield Change(
            "rope.share",
            f"frequencies over the whole head of {head_dim} → over its {right.rotated} rotated",
            replace(right, whole_exponent=True),
        )
    for half in HALVES:
        name = name_of(half)
        for angles, what in ((False, "cos and sin"), (True, "angles")):
            yield Change(
                "rope.half",
                f"RoPE's {what} in {name} → float32",
                replace(right, half=half, half_angles=angles),
            )
