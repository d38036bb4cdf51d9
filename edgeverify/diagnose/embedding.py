"""Models ``embed``: the table and its scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from edgeverify.diagnose import compare_weights, estimate
from edgeverify.diagnose.fault import HALVES, Change, apart, name_of, number
from edgeverify.diagnose.scene import Inputs, Scene

# Above this relative difference, which rounding to half precision cannot cause, a row of the table
# is another token's.
SAME_ROW = 1e-2
FEW = 4


@dataclass(frozen=True)
class Embedding:
    """A table of (V, C), times a scale.

    Attributes:
        table: (V, C).
        scale: factor of each row.
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
    """``embed``, as a sublayer."""

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
            name = name_of(half)
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
        if held is not None and compare_weights.differs(held, right.table):
            told = compare_weights.difference(held, right.table, name, self.scene.roles.state)
            yield Change("embedding.table", f"table: {told}", replace(right, table=held), held=True)
        head = self.scene.roles.get(None, "head")
        if head is not None and head.shape == right.table.shape:
            text = f"table: {self.scene.roles.name(None, 'head')} → {name}"
            yield Change("embedding.table", text, replace(right, table=head))
        for shift in (1, -1):
            text = f"token ids off by {shift:+d} → as they are"
            yield Change("embedding.ids", text, replace(right, shift=shift))
        yield from self._other_rows(right, port, rows)
        for token in sorted(set(zero_tokens(self.scene, port, rows))):
            text = f"row of token {token} is zero (padding_idx?) → its weights"
            yield Change("embedding.table", text, replace(right, zero=token))

    def _other_rows(
        self, right: Embedding, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Embedding]]:
        """Yields tokens that get another token's row, read from the port's rows."""
        tokens = torch.tensor(self.scene.case.tokens)[rows]
        given = self.compute(right, self.scene.inputs(rounded=True))[rows]
        odd = (given - port).norm(dim=1) > SAME_ROW * port.norm(dim=1)
        exchanged = {}
        for token in tokens[odd].unique().tolist()[:FEW]:
            row = port[(tokens == token).nonzero()[0, 0]] / right.scale
            nearest = int((right.table.double() - row).norm(dim=1).argmin())
            if nearest != token:
                exchanged[token] = nearest
        if exchanged and len(exchanged) == len(tokens[odd].unique()):
            pairs = exchanged.items()
            told = ", ".join(f"token {mine} gets the row of token {its}" for mine, its in pairs)
            table = right.table.clone()
            table[list(exchanged)] = right.table[list(exchanged.values())]
            text = f"{told} → its own"
            yield Change("embedding.ids", text, replace(right, table=table))

    def fitted(
        self, right: Embedding, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Embedding]]:
        right_rows = self.compute(right, self.scene.inputs(rounded=True))[rows]
        scale = estimate.factor(port, right_rows) * right.scale
        mine, wanted = apart(scale, right.scale)
        text = f"embedding scale {mine} (estimated) → {wanted}"
        yield Change("embedding.scale", text, replace(right, scale=scale))


def zero_tokens(scene: Scene, port: torch.Tensor, rows: torch.Tensor) -> list[int]:
    """Returns the tokens for which the port's rows are zeros."""
    tokens = torch.tensor(scene.case.tokens)[rows]
    return tokens[(port == 0).flatten(1).all(1)].tolist()
