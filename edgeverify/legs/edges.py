"""The audit ``edges``: single steps where the conversation of the legs does not come.

Each edge is compared with the Hugging Face model in float64. Both start from KV caches with the
rows that they themselves have left in the conversation, so that another representation of the cache
is no fault. A leg that fails is not walked, because it would only show the same fault again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from edgeverify.backends.sessions.reauthored import ReauthoredSession
from edgeverify.backends.sessions.walk import CHANGED, walk
from edgeverify.backends.streaming import forgetting
from edgeverify.core import taps
from edgeverify.core.case import Step
from edgeverify.core.compare import compare, thresholds
from edgeverify.core.edges import (
    BATCH,
    BATCH_ROWS,
    LAST_POSITIONS,
    Edge,
    plan_edges,
    rows_left,
)
from edgeverify.core.judge import Baseline, judge_surely, leg_of
from edgeverify.core.leg import AUTHORING
from edgeverify.core.representation import NOTE
from edgeverify.core.results import (
    EDGES,
    FAIL,
    NOT_APPLICABLE,
    PASS,
    UNCHECKED,
    AuditResult,
    Check,
    LegResult,
    TapResult,
)
from edgeverify.core.trace import Trace
from edgeverify.legs.edge_baselines import EdgeBaselines
from edgeverify.legs.embedding_rows import embedding_rows
from edgeverify.legs.run import Run

# Bytes of the longest KV cache that is written. A model whose cache is larger is walked up to the
# position where this one ends.
LARGEST_CACHE = 64 << 20
# RoPE whose frequencies depend on the length of the conversation. Beyond the original context they
# are not the ones that the earlier rows of a KV cache were rotated with.
BY_LENGTH = ("dynamic", "longrope")
PORT, FILE = "module", "file"
# Edges that a right model need not take: it may have been written for one conversation, or may
# build its masks itself.
OPTIONAL = (LAST_POSITIONS, BATCH)


@dataclass
class EdgeWalk:
    """The edge walk of one run.

    Attributes:
        run: its case has the reference's decode tokens.
        of_legs: leg → the baseline of its conversation.
        positions: of the model; those of its KV cache if None.
        checks: of what was walked so far.
        _why: why nothing more is walked, or "".
    """

    run: Run
    of_legs: Mapping[str, Baseline]
    positions: int | None = None
    checks: list[Check] = field(default_factory=list)
    _why: str = ""

    @property
    def audit(self) -> AuditResult:
        """What was walked, in order."""
        return AuditResult(EDGES, tuple(self.checks))

    def port(self, leg: LegResult, trace: Trace) -> None:
        """Walks the re-authored model.

        Args:
            leg: authoring, judged.
            trace: the leg's whole run.
        """
        if leg.outcome == FAIL:
            self._why = "the leg authoring fails"
            self._not_walked(PORT, self._why)
            return
        with self._surviving(PORT):
            self._port(leg, trace)

    def _port(self, leg: LegResult, trace: Trace) -> None:
        run, case, model = self.run, self.run.case, self.run.model()
        kept = rows_left(trace, case)
        with run.timed("edge walk"), forgetting(model):
            session = ReauthoredSession(model, case, batch=BATCH_ROWS)
            walked = walk(session, self._inside, kept)
            for edge in self._edges[len(self._inside) :]:
                # The masks are given, because the model's own end where the case's cache does.
                longer = replace(case, kv_cache_len=edge.rows, mask_as_input=True)
                _add(walked, walk(ReauthoredSession(model, longer), [edge], kept))
            of_embedding = embedding_rows(model, case, run.state(), self.of_legs[AUTHORING])
        self._judge(PORT, leg, walked, self._edges)
        self.checks.append(of_embedding)
        # While the weights are in memory; the file's own run needs the room.
        self._baselines.prepare()

    @property
    def of_file(self) -> tuple[Edge, ...]:
        """The edges that a file can walk; none if that would show nothing new."""
        return () if self._why else self._inside

    def file(self, leg: LegResult, walked: Trace) -> None:
        """Judges a float file.

        Args:
            leg: conversion, judged.
            walked: the file's run of the edges ``of_file``.
        """
        if leg.outcome == FAIL or self._why:
            self._not_walked(FILE, self._why or f"the leg {leg.name} fails")
            return
        with self._surviving(FILE):
            self._judge(FILE, leg, walked, self._inside)

    @contextmanager
    def _surviving(self, where: str) -> Iterator[None]:
        """Lets an exception discard nothing of what the legs have found."""
        try:
            yield
        except Exception as error:
            self._why = f"{type(error).__name__}: {error}"
            self._not_walked(where, self._why)

    def _not_walked(self, where: str, reason: str) -> None:
        self.checks.append(Check(EDGES, where, UNCHECKED, reason=f"not walked: {reason}"))

    @cached_property
    def _baselines(self) -> EdgeBaselines:
        return EdgeBaselines(self.run, self._edges, self.of_legs)

    @cached_property
    def _edges(self) -> tuple[Edge, ...]:
        case = self.run.case
        most = case.kv_cache_len
        if self.positions is not None:
            kept = rows_left(next(iter(self.of_legs.values())).own, case)
            fitting = LARGEST_CACHE // sum(rows[0].nbytes for rows in kept.values())
            most = min(self.positions, fitting, steady_positions(self.run.hf_config))
        return plan_edges(case, positions=most, seed=0)

    @property
    def _inside(self) -> tuple[Edge, ...]:
        """The edges that the case's own KV cache takes, which come first."""
        rows = self.run.case.kv_cache_len
        return tuple(edge for edge in self._edges if edge.rows == rows)

    def _judge(self, where: str, leg: LegResult, walked: Trace, edges: Sequence[Edge]) -> None:
        """Adds a check for each kind of edge."""
        results = self._results(leg, walked, edges)
        for kind in dict.fromkeys(edge.kind for edge in edges):
            steps = [edge.step for edge in edges if edge.kind == kind]
            found = [check for check in self.checks if check.item == kind]
            if any(check.outcome == FAIL for check in found):
                outcome, reason = NOT_APPLICABLE, "not judged: the module fails there"
            else:
                outcome, reason = outcome_of(kind, steps, walked, results)
            self.checks.append(Check(kind, where, outcome, reason=reason))

    def _results(
        self, leg: LegResult, walked: Trace, edges: Sequence[Edge]
    ) -> dict[str, list[TapResult]]:
        """Judges the taps of each step that ran; step → results in forward order."""
        # In another representation of the KV cache, its rows are not the reference's.
        cache = not any(
            result.reason.startswith(NOTE) and taps.split(result.tap)[1].startswith("kv.")
            for result in leg.taps
        )
        blocks = len(rows_left(self.of_legs[leg.leg.kind].own, self.run.case)) // 2
        logits = self.run.case.prefill_logits
        expected: list[str] = []
        found: dict[str, list[TapResult]] = {}
        for edge in edges:
            keys = edge.expected(blocks, logits=logits, cache=cache)
            if any(key in walked for key in keys):
                expected += keys
                found[edge.step.name] = []
        if not expected:
            return {}
        # What is not expected would count as too much.
        judged = Trace({key: walked[key] for key in expected if key in walked})
        starts = {edge.step.name: edge.step.start for edge in edges}
        limits = thresholds(leg.leg.kind)

        def judge(against: Baseline) -> LegResult:
            judged_ = compare(judged, against.oracle, against.floor, limits, expected, starts)
            return leg_of(leg.leg, judged_)

        result, _ = judge_surely(judge, self._baselines.of(leg.leg.kind))
        for tap in result.taps:
            found[taps.split(tap.tap)[0]].append(tap)
        return found


def _add(walked: Trace, more: Trace) -> None:
    walked.arrays |= more.arrays
    walked.unavailable |= more.unavailable
    walked.provenance[CHANGED] |= more.provenance[CHANGED]


def outcome_of(
    kind: str, steps: Sequence[Step], walked: Trace, results: Mapping[str, Sequence[TapResult]]
) -> tuple[str, str]:
    """Returns the outcome of a kind of edge, and why."""
    for step in steps:
        where = f"{step.signature} at position {step.start}"
        if step.name in walked.unavailable:
            outcome = NOT_APPLICABLE if kind in OPTIONAL else UNCHECKED
            return outcome, f"{where}: {walked.unavailable[step.name]}"
        if step.name not in results and kind == BATCH:
            return NOT_APPLICABLE, "one conversation at a time"
        if step.name not in results:
            return UNCHECKED, f"{where}: nothing of it could be compared"
        if step.name in walked.provenance[CHANGED]:
            return FAIL, f"{where} changes {walked.provenance[CHANGED][step.name]}"
        odd = [result for result in results[step.name] if result.outcome != PASS]
        if odd:
            first = min(odd, key=lambda result: result.outcome != FAIL)
            return first.outcome, f"{where}: {_told(first)}"
    return PASS, ""


def _told(result: TapResult) -> str:
    """Says in what a tap differs; the rows that a step writes are those of the KV cache."""
    tap = taps.split(result.tap)[1]
    index = taps.block_index(tap)
    name = tap if index is None else f"the rows written into {taps.kv(index, tap[-1])}"
    if result.row_ratio is None or result.outcome != FAIL:
        return f"{name}: {result.reason}"
    return f"{name} differ {result.row_ratio:.3g} times as much as rounding explains"


def steady_positions(hf_config: Mapping[str, Any]) -> int:
    """Returns how many positions a model has whose rotation is the same in every conversation."""
    declared = hf_config.get("max_position_embeddings")
    limit = declared if isinstance(declared, int) else sys.maxsize
    for key in ("rope_scaling", "rope_parameters"):
        rope = hf_config.get(key)
        for part in (rope, *rope.values()) if isinstance(rope, Mapping) else ():
            if isinstance(part, Mapping) and part.get("rope_type", part.get("type")) in BY_LENGTH:
                own = part.get("original_max_position_embeddings")
                known = own or hf_config.get("original_max_position_embeddings")
                limit = min(limit, known or limit)
    return limit
