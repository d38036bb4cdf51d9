"""Walks the edges of ``core.edges`` on a session. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeverify.backends.sessions.session import Cache, Session
from edgeverify.core import taps
from edgeverify.core.edges import BATCH, Edge, Rows
from edgeverify.core.errors import ArtifactError, PortError
from edgeverify.core.trace import Trace

CHANGED = "changed"


def walk(session: Session, edges: Sequence[Edge], kept: Rows) -> Trace:
    """Runs each edge from its own written KV cache.

    Args:
        session: of the implementation; its position and cache are lost.
        edges: its KV cache has as many rows as theirs.
        kept: the rows that a conversation on this implementation has left.

    Returns:
        For each edge ``attn.k`` and ``attn.v`` of each block, which are the rows that the step has
        written, and ``logits`` if its signature returns them. ``unavailable`` says for an edge's
        name why it could not be walked. ``provenance[CHANGED]`` maps an edge's name to a row from
        before the step that the step has changed.
    """
    trace = Trace(provenance={"backend": session.name, CHANGED: {}})
    batch = [edge for edge in edges if edge.kind == BATCH]
    alone = [[edge] for edge in edges if edge.kind != BATCH]
    for group in [*alone, *([batch] if batch and session.batch else [])]:
        try:
            _step(session, group, kept, trace)
        except (PortError, ArtifactError) as error:
            trace.unavailable |= {edge.step.name: str(error) for edge in group}
    return trace


def unwalked(edges: Sequence[Edge], reason: str) -> Trace:
    """Returns the trace of edges that could not be walked."""
    unavailable = {edge.step.name: reason for edge in edges}
    return Trace(provenance={CHANGED: {}}, unavailable=unavailable)


def _step(session: Session, edges: Sequence[Edge], kept: Rows, trace: Trace) -> None:
    """Runs one edge, or all rows of a batch at once."""
    first = edges[0].step
    states = [_whole(edge.state(kept), edge.rows) for edge in edges]
    session.reset()
    session.position = first.start
    logits: list[np.ndarray | None]
    if edges[0].kind == BATCH:
        # A file's batch may have more rows than there are conversations.
        turns = [at % len(edges) for at in range(session.batch)]
        fed = [edges[turn].step.tokens[0] for turn in turns]
        answers, after = session.decode_batch(fed, [states[turn] for turn in turns])
        logits = [row[None] for row in answers]
    else:
        session.write_cache(states[0])
        if first.is_decode:
            logits = [session.decode(first.tokens[0])[None]]
        else:
            logits = [session.prefill(first.tokens, length=first.length)]
        after = [session.read_cache()]
    for edge, before, rows, answer in zip(edges, states, after, logits, strict=False):
        _record(trace, edge, before, rows, answer)


def _record(
    trace: Trace, edge: Edge, before: Cache, after: Cache, logits: np.ndarray | None
) -> None:
    step = edge.step
    for tap, rows in after.items():
        _, index, which = tap.split(".")
        trace.add(
            step.name, taps.block(int(index), f"attn.{which}"), rows[None, step.start : step.end]
        )
        kept, now = before[tap][: step.start], rows[: step.start]
        same = (kept == now) | (np.isnan(kept) & np.isnan(now))
        other = np.flatnonzero(~same.all(axis=(1, 2)))
        if len(other):
            trace.provenance[CHANGED].setdefault(step.name, f"{tap}, row {other[0]}")
    if logits is not None:
        trace.add(step.name, taps.LOGITS, logits[None])


def _whole(state: Rows, rows: int) -> dict[str, np.ndarray]:
    """Returns a KV cache of so many rows; those that are not written are zero."""
    whole = {}
    for tap, written in state.items():
        whole[tap] = np.zeros((rows, *written.shape[1:]), np.float32)
        whole[tap][: len(written)] = written
    return whole
