"""Models ``ff_norm`` and ``out``: what is added to the residual stream, and the norms in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from edgeverify.core import taps
from edgeverify.diagnose import estimate
from edgeverify.diagnose.fault import Change, apart, changed
from edgeverify.diagnose.norms import Norm, norm_changes, right_norms
from edgeverify.diagnose.scene import Inputs, Scene


@dataclass(frozen=True)
class Stream:
    """The residual stream in a block, up to the feed-forward's input or the block's end.

    It is x + post_attn(a) and, at the end, + post_ff(f); x is the block's input, a the attention's
    and f the feed-forward's output. In parallel blocks the feed-forward's input is the norm of x.

    Attributes:
        post_attn: the norm after attention, or None.
        post_ff: likewise, after the feed-forward; only ``out`` has it.
        last: the feed-forward's norm; only ``ff_norm`` has it.
        x, a, f: how often each is added.
        factor: factor of the block's output.
        parallel: the feed-forward takes x, not x + a.
        from_norm: x is the normed input of the attention.
        late_attn, late_ff: the post norm applies to the sum, not to the added term.
        onto_norm: f is added to the feed-forward's normed input.
    """

    post_attn: Norm | None
    post_ff: Norm | None = None
    last: Norm | None = None
    x: float = 1.0
    a: float = 1.0
    f: float = 1.0
    factor: float = 1.0
    parallel: bool = False
    from_norm: bool = False
    late_attn: bool = False
    late_ff: bool = False
    onto_norm: bool = False


class StreamOf:
    """``ff_norm`` or ``out`` of one block, as a sublayer."""

    def __init__(self, scene: Scene, block: int, *, end: bool) -> None:
        self.scene, self.block, self.end = scene, block, end

    def rights(self) -> Iterator[Stream]:
        scene, block = self.scene, self.block
        shared = scene.roles.get(block, "ff_norm") is None  # Phi: one norm serves both
        role = "attn_norm" if shared else "ff_norm"
        for post in right_norms(scene, block, "post_attn_norm"):
            if self.end:
                for post_ff in right_norms(scene, block, "post_ff_norm"):
                    yield Stream(post, post_ff)
            else:
                for last in right_norms(scene, block, role):
                    yield Stream(post, None, last, parallel=shared)

    def compute(self, spec: Stream, inputs: Inputs) -> torch.Tensor:
        block = self.block
        before = taps.EMBED if block == 0 else taps.block(block - 1, "out")
        x = inputs.tap(taps.block(block, "attn_norm") if spec.from_norm else before)
        a = inputs.tap(taps.block(block, "attn.out"))
        if not spec.late_attn and spec.post_attn is not None:
            a = spec.post_attn(a)
        middle = spec.x * x + (0.0 if spec.parallel and not self.end else spec.a) * a
        if spec.late_attn and spec.post_attn is not None:
            middle = spec.post_attn(middle)
        if not self.end:
            return middle if spec.last is None else spec.last(middle)
        f = inputs.tap(taps.block(block, "ff.out"))
        if spec.onto_norm:
            middle = inputs.tap(taps.block(block, "ff_norm"))
        if not spec.late_ff and spec.post_ff is not None:
            f = spec.post_ff(f)
        out = middle + spec.f * f
        if spec.late_ff and spec.post_ff is not None:
            out = spec.post_ff(out)
        return out * spec.factor

    def changes(
        self, right: Stream, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Stream]]:
        yield from self._norm_changes(right)
        yield from self._sum_changes(right)

    def _norm_changes(self, right: Stream) -> Iterator[Change[Stream]]:
        labels = {
            "last": ("ff_norm", "norm"),
            "post_attn": ("post_attn_norm", "norm after attention"),
            "post_ff": ("post_ff_norm", "norm after the feed-forward"),
        }
        everywhere: dict[str, list[tuple[str, Change[Norm]]]] = {}
        for part, (role, label) in labels.items():
            norm: Norm | None = getattr(right, part)
            if norm is None:
                continue
            if part == "last" and right.parallel:
                role = "attn_norm"
            for change in norm_changes(self.scene, self.block, role, norm, label):
                yield Change(change.kind, change.text, changed(right, **{part: change.spec}))
                common = change.text.replace(label, "norm", 1)
                everywhere.setdefault(common, []).append((part, change))
        count = sum(getattr(right, part) is not None for part in labels)
        for text, alike in everywhere.items():
            if len(alike) == count > 1:
                specs = {part: change.spec for part, change in alike}
                yield Change(alike[0][1].kind, text, changed(right, **specs))
        places: list[dict[str, bool]] = []
        if right.post_attn is not None:
            places.append({"late_attn": True})
        if right.post_ff is not None:
            places += [{"late_ff": True}, {"late_attn": True, "late_ff": True}]
        for place in places:
            both = " and ".join(
                told
                for field, told in (("late_attn", "attention"), ("late_ff", "the feed-forward"))
                if field in place
            )
            yield Change(
                "norm.place",
                f"norm after {both} taken over the sum with the residual → over its output",
                changed(right, **place),
            )

    def _sum_changes(self, right: Stream) -> Iterator[Change[Stream]]:
        if not self.end:
            if right.parallel:
                text = "sequential: attention is added before the feed-forward's norm → parallel"
            else:
                text = "parallel: the feed-forward takes the block's input → the sum with attention"
            yield Change("residual", text, replace(right, parallel=not right.parallel))
        parts = {
            "x": "the block's input",
            "a": "attention's output",
            "f": "the feed-forward's output",
        }
        for part, told in parts.items():
            if (part == "f" and not self.end) or (part == "a" and right.parallel):
                continue
            yield Change(
                "residual",
                f"{told} left out of the residual stream → added",
                changed(right, **{part: 0.0}),
            )
            yield Change(
                "residual",
                f"{told} added twice to the residual stream → once",
                changed(right, **{part: 2.0}),
            )
        yield Change(
            "residual",
            "the residual stream goes on from the normed input → from the block's input",
            replace(right, from_norm=True),
        )
        if self.end:
            yield Change(
                "residual",
                "the feed-forward's output is added to its normed input → to the residual stream",
                replace(right, onto_norm=True),
            )

    def fitted(
        self, right: Stream, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Stream]]:
        """Yields a factor of the whole, then how often each part was added, by least squares."""
        if not self.end:
            return
        inputs = self.scene.inputs(rounded=True)
        parts = "xaf"
        alone = [
            self.compute(changed(right, **{p: float(p == part) for p in parts}), inputs)[rows]
            for part in parts
        ]
        ratio = estimate.factor(port, self.compute(right, inputs)[rows])
        text = f"the block's output is multiplied by {apart(ratio, 1)[0]} → 1"
        yield Change("residual", text, replace(right, factor=ratio))
        table = torch.stack([one.flatten() for one in alone], 1)
        found = torch.linalg.lstsq(table, port.flatten()).solution.tolist()
        # Least squares give 1e-16 for a part that was not added.
        found = [round(value, 9) + 0.0 for value in found]
        told = ", ".join(apart(value, 1)[0] for value in found)
        text = f"input, attention and feed-forward are added with the factors {told} → 1, 1, 1"
        spec = changed(right, **dict(zip(parts, found, strict=True)))
        yield Change("residual", text, spec)
