"""Turns a failed authoring leg into sentences: one per cause, one per kind of unexplained tap."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from edgeverify.core import taps
from edgeverify.core.case import Case
from edgeverify.core.compare import compare, thresholds
from edgeverify.core.judge import Baseline
from edgeverify.core.results import FAIL, Finding
from edgeverify.core.trace import Trace
from edgeverify.diagnose import identity
from edgeverify.diagnose.attention_changes import AttentionOf
from edgeverify.diagnose.cache import CacheOf
from edgeverify.diagnose.clock import Clock
from edgeverify.diagnose.embedding import EmbeddingOf
from edgeverify.diagnose.fault import Sublayer
from edgeverify.diagnose.feed_forward import FeedForwardOf
from edgeverify.diagnose.head import HeadOf
from edgeverify.diagnose.norms import NormOf
from edgeverify.diagnose.projection import ProjectionOf
from edgeverify.diagnose.residual import StreamOf
from edgeverify.diagnose.scene import Scene
from edgeverify.diagnose.search import Result, search
from edgeverify.diagnose.shapes import shapes
from edgeverify.hf.roles import Roles

_NUMBER = re.compile(r"^(blocks|kv)\.(\d+)\.(.*)$")

# Rows of attention that a repair is tried on, because each costs all of the keys before it. A
# default case has fewer. With 2,211 tokens and 3 blocks, the search on all rows took over 200 s,
# and takes 14 s on these (tests/diagnose/test_time.py).
MOST_ROWS = 96
UNSTEADY = "other values in a second run on the same inputs"
OF_BLOCK: Mapping[str, Callable[[Scene, int], Sublayer[Any]]] = {
    "attn_norm": NormOf,
    "attn.q": lambda scene, block: ProjectionOf(scene, block, "q"),
    "attn.k": lambda scene, block: ProjectionOf(scene, block, "k"),
    "attn.v": lambda scene, block: ProjectionOf(scene, block, "v"),
    "attn.out": AttentionOf,
    "ff_norm": lambda scene, block: StreamOf(scene, block, end=False),
    "ff.out": FeedForwardOf,
    "out": lambda scene, block: StreamOf(scene, block, end=True),
}
OF_ENDS: Mapping[str, Callable[[Scene], Sublayer[Any]]] = {
    taps.EMBED: EmbeddingOf,
    taps.FINAL_NORM: lambda scene: NormOf(scene, None),
    taps.LOGITS: HeadOf,
}


@dataclass(frozen=True)
class _Told:
    """A cause at one tap, or the lack of one, and the shapes of the tap's error."""

    result: Result
    shapes: tuple[str, ...]


def diagnose(
    model: nn.Module,
    hf_config: Mapping[str, Any],
    state: Mapping[str, Any],
    case: Case,
    run_alone: Callable[[], Trace],
    baseline: Baseline,
    expected: Iterable[str],
    clock: Clock | None = None,
) -> tuple[Finding, ...]:
    """Finds the likely causes of a failed authoring leg.

    Args:
        model: the re-authored model.
        hf_config: the HF config.
        state: the checkpoint, HF names → tensors.
        case: the conversation, with known decode tokens.
        run_alone: returns the re-authored model's trace, each tap computed from the oracle's values
            of the taps before it (``backends.reauthored.run(..., every_tap=True)``).
        baseline: the oracle and its isolated floor.
        expected: the ``step/tap`` keys, in forward order.
        clock: when its time is up, the search ends with what it has found so far.

    Returns:
        ``authoring.cause`` findings, each with its measurements, then ``authoring.unexplained``
        ones.
    """
    port, limits = run_alone(), thresholds("isolated")
    judged = compare(
        port, baseline.oracle, baseline.isolated_floor, limits, tuple(expected), case.starts
    )
    failed = frozenset(result.tap for result in judged if result.outcome == FAIL)
    floor = baseline.isolated_floor
    roles = Roles(state)
    oracle, clock = baseline.oracle, clock or Clock()
    scene = Scene(model, hf_config, roles, case, oracle, port, floor, failed, clock)
    told = _told(scene)
    if any(one.result.cause is None for one in told) and not scene.clock.is_up():
        told = _unsteady(scene, told, run_alone())
    return _findings(scene, told)


def sublayer_of(scene: Scene, tap: str) -> Sublayer[Any] | None:
    """Returns the sublayer that ends at a tap, or None if there is no model of it."""
    if tap in OF_ENDS:
        return OF_ENDS[tap](scene)
    match = _NUMBER.match(tap)
    if match is None:
        return None
    family, block, rest = match.group(1), int(match.group(2)), match.group(3)
    if family == "kv":
        return CacheOf(scene, block, rest)
    return OF_BLOCK[rest](scene, block) if rest in OF_BLOCK else None


def _told(scene: Scene) -> list[_Told]:
    """Diagnoses each faulty tap.

    Of taps that differ only in their block, the first one is searched in full.
    """
    told = []
    known: dict[str, str] = {}  # kind of tap → kind of its cause, or "" if none was found
    for tap in scene.faulty():
        seen = scene.seen(tap)
        if seen is None:
            formal = identity.cause(scene, tap)
            if formal is not None:
                told.append(_Told(Result(tap, formal, 1), ()))
            continue
        name = _without_number(tap)
        sublayer = sublayer_of(scene, tap)
        few = seen.sampled(MOST_ROWS) if isinstance(sublayer, AttentionOf) else seen
        result = Result(tap, None, 0)
        if known.get(name):
            result = search(scene, sublayer, seen, few, kind=known[name])
        if result.cause is None:
            result = search(scene, sublayer, seen, few, fitted=name not in known)
        known[name] = known.get(name) or (result.cause.kind if result.cause else "")
        told.append(_Told(result, shapes(scene, seen)))
    return told


def _unsteady(scene: Scene, told: list[_Told], again: Trace) -> list[_Told]:
    """Adds to the taps without a cause whether a second run gives other values."""
    changing = {
        taps.split(key)[1]
        for key in scene.failed
        if key in scene.port and key in again and not np.array_equal(scene.port[key], again[key])
    }
    return [
        replace(one, shapes=(UNSTEADY, *one.shapes))
        if one.result.cause is None and one.result.tap in changing
        else one
        for one in told
    ]


def _findings(scene: Scene, told: list[_Told]) -> tuple[Finding, ...]:
    """Returns one finding for each distinct cause, and one for each kind of unexplained tap."""
    causes: dict[tuple[str, ...], list[_Told]] = {}
    unexplained: dict[str, list[_Told]] = {}
    for one in told:
        cause = one.result.cause
        if cause is None:
            unexplained.setdefault(_without_number(one.result.tap), []).append(one)
        else:
            texts = (cause.text, *cause.others)
            key = tuple(_own_layer(text, one.result.tap, "*") for text in texts)
            causes.setdefault(key, []).append(one)
    found = [_cause_finding(scene, texts, group) for texts, group in causes.items()]
    return (*found, *(_unexplained_finding(scene, group) for group in unexplained.values()))


def _own_layer(text: str, tap: str, number: str) -> str:
    """Replaces the tap's own layer number in the text's tensor names by ``number``."""
    block = taps.block_index(tap)
    return text if block is None else text.replace(f".layers.{block}.", f".layers.{number}.")


def _cause_finding(scene: Scene, texts: tuple[str, ...], group: list[_Told]) -> Finding:
    cause = group[0].result.cause
    assert cause is not None
    ratio = max(one.result.cause.ratio for one in group if one.result.cause is not None)
    names = [one.result.tap for one in group]
    blocks = {taps.block_index(name) for name in names}
    if len(blocks) == 1:
        texts = (cause.text, *cause.others)
    repair = f"{texts[0]} restores parity (ratio {ratio:.2g})"
    if len(texts) > 1:
        repair = f"each of these restores parity (ratio {ratio:.2g}): {' | '.join(texts)}"
    stopped = _stopped(scene, group)
    if stopped is not None:
        repair += f" (stopped after {stopped:.0f} s, before other repairs were tried)"
    message = f"{where(names, scene.blocks)}: {repair}{_seen(group)}"
    return Finding(
        "authoring.cause",
        "authoring",
        _first_key(scene, names[0]),
        message,
        cause=cause.kind,
        ratio=ratio,
        taps=tuple(names),
        changes=texts,
        shape=_shared(group),
        stopped=stopped,
    )


def _unexplained_finding(scene: Scene, group: list[_Told]) -> Finding:
    names = [one.result.tap for one in group]
    tried = max(one.result.tried for one in group)
    said = f"none of the {tried} repairs tried restores parity"
    stopped = _stopped(scene, group)
    if stopped is not None:
        said += f" (stopped after {stopped:.0f} s, before all were tried)"
    message = f"{where(names, scene.blocks)}: {said}{_seen(group)}"
    return Finding(
        "authoring.unexplained",
        "authoring",
        _first_key(scene, names[0]),
        message,
        taps=tuple(names),
        shape=_shared(group),
        tried=tried,
        stopped=stopped,
    )


def _stopped(scene: Scene, group: list[_Told]) -> float | None:
    """The seconds after which the search at one of the group's taps was broken off, or None."""
    return scene.clock.seconds if any(one.result.stopped for one in group) else None


def _seen(group: list[_Told]) -> str:
    shared = _shared(group)
    return f"; the error: {', '.join(shared)}" if shared else ""


def _shared(group: list[_Told]) -> tuple[str, ...]:
    """Returns the shapes that all of the group's taps share."""
    return tuple(text for text in group[0].shapes if all(text in one.shapes for one in group))


def _first_key(scene: Scene, tap: str) -> str:
    return next(
        f"{step.name}/{tap}" for step in scene.case.steps if f"{step.name}/{tap}" in scene.failed
    )


def _without_number(tap: str) -> str:
    match = _NUMBER.match(tap)
    return tap if match is None else f"{match.group(1)}.*.{match.group(3)}"


def where(names: Iterable[str], blocks: int) -> str:
    """Joins taps by block: ``blocks.*.attn.q, blocks.{0,2}.ff.out, final_norm``."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        index = taps.block_index(name)
        numbers.setdefault(_without_number(name), []).extend([] if index is None else [index])
    told = []
    for name, found in numbers.items():
        if not found or len(found) == blocks:
            told.append(name)
        elif len(found) == 1:
            told.append(name.replace("*", str(found[0]), 1))
        else:
            told.append(name.replace("*", "{" + ",".join(map(str, found)) + "}", 1))
    return ", ".join(told)
