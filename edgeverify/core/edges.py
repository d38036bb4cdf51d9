"""Plans an edge walk: single steps at the places that a short conversation does not reach.

A conversation of some hundred tokens writes neither the last row of the KV cache nor the model's
last positions, and each of its chunks begins where one before it ends. An edge is one step from a
KV cache whose rows are written directly, so that it costs one step wherever it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeverify.core import taps
from edgeverify.core.case import Case, Step
from edgeverify.core.noise import Floor
from edgeverify.core.trace import Trace

PADDED = "padded first chunk"
ODD_START = "odd chunk start"
BESIDE_WINDOW = "row beside the window"
LAST_ROW = "last cache row"
LAST_POSITIONS = "last positions"
BATCH = "rows of a batch"
EMBEDDING_ROWS = "embedding rows"
# The share of real tokens in the padded first chunk: few, so that most of its rows are pads.
REAL_SHARE = 0.3
# Conversations of a batch.
BATCH_ROWS = 2

# ``kv.{i}.k|v`` → (n, N, H): the rows of a KV cache.
Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Edge:
    """One step from a written KV cache.

    Attributes:
        kind: what it is called in reports.
        step: the call; its name is unique among edges.
        rows: the length of the KV cache.
        turn: by how many rows the written ones are rotated; differs between the rows of a batch.
    """

    kind: str
    step: Step
    rows: int
    turn: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Edge:
        """Builds an edge from JSON, which has lists for tuples."""
        step = Step(**{**data["step"], "tokens": tuple(data["step"]["tokens"])})
        return cls(**{**data, "step": step})

    def state(self, kept: Rows) -> dict[str, np.ndarray]:
        """Returns the rows before the step: those of a conversation, as often as needed.

        Args:
            kept: the rows that a conversation has left, at least one.
        """
        places = np.arange(self.step.start) + self.turn
        return {tap: rows[places % len(rows)] for tap, rows in kept.items()}

    def expected(self, blocks: int, *, logits: bool, cache: bool) -> list[str]:
        """Returns the ``step/tap`` keys that the step must have, in forward order.

        Args:
            blocks: of the model.
            logits: whether a prefill returns logits.
            cache: whether the rows that the step writes are compared.
        """
        written = [taps.block(i, f"attn.{which}") for i in range(blocks) for which in "kv"]
        found = written if cache else []
        if logits or self.step.is_decode:
            found = [*found, taps.LOGITS]
        return [f"{self.step.name}/{tap}" for tap in found]


def plan_edges(case: Case, *, positions: int, seed: int) -> tuple[Edge, ...]:
    """Returns the edges that a case has.

    Args:
        case: gives the signatures, the rows of the KV cache and the window.
        positions: how many positions are walked: the model's, or as many as fit in memory.
        seed: draws the tokens from those of the case.
    """
    rows, short, window = case.kv_cache_len, min(case.prefill_lengths), case.window
    used, drawn = np.unique(case.tokens), np.random.default_rng(seed)
    prefill = next(n for n, length in case.signatures.items() if length == short)
    found: list[Edge] = []

    def add(kind: str, signature: str, start: int, count: int = 1, **more: int) -> None:
        name = f"{kind} {more['turn']}" if "turn" in more else kind
        tokens = tuple(int(token) for token in drawn.choice(used, count))
        length = 1 if signature == "decode" else short
        step = Step(name, signature, length, start, tokens)
        found.append(Edge(kind, step, **{"rows": rows, **more}))

    if short > 1:
        add(PADDED, prefill, 0, max(1, int(short * REAL_SHARE)))
    odd = min(short + 5, rows - short)
    odd -= 1 - odd % 2
    if odd > 0:
        add(ODD_START, prefill, odd, short)
    if case.decode_batch:
        if window is not None and window < rows - 1:
            add(BESIDE_WINDOW, "decode", window)
        add(LAST_ROW, "decode", rows - 1)
        for turn in range(BATCH_ROWS):
            add(BATCH, "decode", min(rows - 1, len(case.tokens)), turn=turn)
    if positions > rows:
        add(LAST_POSITIONS, prefill, positions - short, short, rows=positions)
    return tuple(found)


def rows_left(trace: Trace, case: Case) -> dict[str, np.ndarray]:
    """Returns the rows of the KV cache that a run of the case has left.

    Returns:
        ``kv.{i}.k|v`` → (n, N, H), of the trace's dtype.
    """
    last = case.steps[-1].name
    split = {key: taps.split(key) for key in trace.arrays}
    return {
        tap: trace.arrays[key][0]
        for key, (step, tap) in split.items()
        if step == last and tap.startswith("kv.")
    }


def moved(rows: Rows, floor: Floor, case: Case, seed: int) -> dict[str, np.ndarray]:
    """Moves each row by a random error of its floor's size: those of another right float32 run.

    Args:
        rows: from ``rows_left``.
        floor: of the case.
        case: that was run.
        seed: of the errors.
    """
    last, drawn = case.steps[-1].name, np.random.default_rng(seed)
    found = {}
    for tap, exact in rows.items():
        noise = drawn.standard_normal(exact.shape)
        size = floor[f"{last}/{tap}"] * _norms(exact) / _norms(noise)
        found[tap] = (exact + noise * size[:, None, None]).astype(np.float32)
    return found


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows.reshape(len(rows), -1), axis=1)
