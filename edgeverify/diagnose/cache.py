"""Models ``kv.{i}.k`` and ``kv.{i}.v``: where a step's rows are written, and if they are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch

from edgeverify.core import taps
from edgeverify.core.case import Step
from edgeverify.diagnose.fault import HALVES, Change, name_of
from edgeverify.diagnose.scene import Inputs, Scene

ROW_SHIFTS = tuple(product((-1, 1), ("all", "decode", "prefill", "later prefill", "restart")))


def row_shift(step: Step, shift: int, when: str) -> int:
    """Returns the offset of the row at which a step's first row is written from its place.

    ``when`` is ``all``, ``decode``, ``prefill``, ``later prefill`` (not the first) or ``restart``,
    which writes each prefill at row 0.
    """
    if when == "restart":
        return 0 if step.is_decode else -step.start
    fits = {
        "all": True,
        "decode": step.is_decode,
        "prefill": not step.is_decode,
        "later prefill": not step.is_decode and step.start > 0,
    }
    return shift if fits[when] else 0


def cache_row_text(written: int, when: str) -> str:
    """Returns the text for rows that are written to the wrong place."""
    if when == "restart":
        return "each prefill is written at row 0 of the cache → after the rows of earlier ones"
    steps = {"all": "", "later prefill": " in prefill steps after the first"}
    told = steps.get(when, f" in {when} steps")
    return f"rows are written {written:+d} from their place in the cache{told} → in place"


def cache_lost_text(signature: str) -> str:
    """Returns the text for a signature whose rows are lost after its step."""
    return f"the cache rows that {signature} writes are lost → kept"


def written_into(cache: torch.Tensor, rows: torch.Tensor, step: Step, shift: int) -> torch.Tensor:
    """Returns the cache (S, ...) after a step's rows, zeros for pads (see ``reauthored.run``)."""
    start = max(0, min(step.start + shift, len(cache) - step.length))
    cache = cache.clone()
    cache[start : start + step.length] = 0
    cache[start : start + len(rows)] = rows
    return cache


@dataclass(frozen=True)
class Cache:
    """The cache after each step.

    Attributes:
        written: offset of each step's rows from their correct place.
        written_in: the steps with that offset, see ``row_shift``.
        source: the tap whose rows are written.
        half: a dtype that the rows are rounded to.
        kept: whether earlier steps' rows are kept.
        lost: the signature whose rows are lost, or "".
    """

    source: str
    written: int = 0
    written_in: str = "all"
    half: torch.dtype | None = None
    kept: bool = True
    lost: str = ""


class CacheOf:
    """``kv.{i}.k`` or ``kv.{i}.v``; the rows of all steps' caches, joined."""

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
            written = row_shift(step, spec.written, spec.written_in)
            before = cache if spec.kept else torch.zeros_like(cache)
            if step.signature != spec.lost:
                cache = written_into(before, rows[step.start : step.end], step, written)
            parts.append(cache[: step.end])
        return torch.cat(parts)

    def changes(
        self, right: Cache, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Cache]]:
        for written, when in ROW_SHIFTS:
            spec = replace(right, written=written, written_in=when)
            yield Change("cache.row", cache_row_text(written, when), spec)
        for lost in self.scene.case.signatures:
            yield Change("cache.lost", cache_lost_text(lost), replace(right, lost=lost))
        other = {"k": "v", "v": "k"}[self.which]
        yield Change(
            "cache.exchanged",
            "the cache's K and V exchanged → apart",
            replace(right, source=f"attn.{other}"),
        )
        for half in HALVES:
            name = name_of(half)
            text = f"the cache is kept in {name} → float32"
            yield Change("cache.half", text, replace(right, half=half))
        yield Change(
            "cache.kept", "earlier steps' rows are lost → kept", replace(right, kept=False)
        )

    def fitted(
        self, right: Cache, port: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[Change[Cache]]:
        """Yields nothing: a cache has no number to estimate."""
        return iter(())
