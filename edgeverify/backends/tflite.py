"""Runs a .tflite in the LiteRT interpreter, step by step, and records its taps.

Logits and KV caches always come from the untouched file. Inner taps come from an instrumented copy.
They count only if that copy's logits and caches are bitwise equal to those of the untouched file,
because reading intermediates can change what the runtime computes (LiteRT #8928).

Nothing here imports torch, so this module also runs on a device host.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeverify.backends.interpreter import (
    CACHE_ORDER,
    call,
    check_room,
    choose_opener,
    open_file,
    runner_of,
)
from edgeverify.backends.sessions.tflite import walk_open
from edgeverify.core import taps
from edgeverify.core.case import Case, Step
from edgeverify.core.edges import Edge
from edgeverify.core.errors import ArtifactError
from edgeverify.core.localise import forget_unfed
from edgeverify.core.masks import masks_of
from edgeverify.core.store import entries
from edgeverify.core.trace import Trace
from edgeverify.litert.flatbuffer import (
    INJECT,
    TAP,
    Instrumentation,
    Located,
    ModelFile,
    by_tap,
)
from edgeverify.litert.flatbuffer.instrument import instrumented_copy


@dataclass(frozen=True)
class Setup:
    """How a file is run, apart from what its case says.

    Attributes:
        num_threads: threads of the interpreter; the machine's number if None.
        cache: a cache folder other than the default one.
        memory_budget: bytes that the process may use; the available memory if None.
        opener: opens a file, from ``choose_opener`` or of another runtime; ``open_file`` if None.
        tick: called after each step.
        edges: steps that the untouched file runs after those of the case; see ``core.edges``.
        walked: receives what the edges gave.
    """

    num_threads: int | None = None
    cache: Path | None = None
    memory_budget: int | None = None
    opener: Callable[..., Any] | None = None
    tick: Callable[[], None] = lambda: None
    edges: Sequence[Edge] = ()
    walked: Callable[[Trace], None] = lambda _: None

    @property
    def threads(self) -> int:
        return self.num_threads or os.cpu_count() or 1


def run_file(
    path: Path, case: Case, oracle: Trace | None = None, setup: Setup | None = None
) -> tuple[Trace, Trace | None]:
    """Runs a file as a whole, and block by block on the oracle's inputs.

    The two instrumented copies, or their tables, are kept in the cache. If XNNPACK packs weights
    on the disk, one copy serves both runs, because all signatures of a file share the packed
    weights there. Large files are run that way even if they fit in memory, because it is faster.

    Args:
        path: the converted file; temporary large copies are made beside it.
        case: what is run.
        oracle: the trace whose block inputs the blocks receive, rounded to float32.
        setup: how the file is run; its ``opener`` is chosen here. ``tick`` is called once for each
            step of the case, though each step is run up to three times.

    Returns:
        The trace of the whole file, and that of its blocks in isolation (None without oracle). In
        the first trace's provenance, ``runtime`` names the runtime that ran the file and
        ``packing`` is the reason that ``choose_opener`` returns.

    Raises:
        ArtifactError: as for ``run``.
    """
    setup = setup or Setup()
    calls, passes, once = itertools.count(1), 2 if oracle is None else 3, setup.tick

    def shared_tick() -> None:
        if next(calls) % passes == 0:
            once()

    opener, told = choose_opener(path, case.kernel, setup.memory_budget, own=True)
    setup = replace(setup, tick=shared_tick, opener=None)
    if opener is not open_file:
        try:
            whole, isolated = _run_packed_once(path, case, oracle, replace(setup, opener=opener))
            whole.provenance |= {"runtime": "CompiledModel", "packing": told}
            return whole, isolated
        except ArtifactError:
            # The interpreter may still accept a file that this runtime refuses. If both refuse it,
            # the error gives the interpreter's reason.
            if told:
                raise
    with instrumented_copy(path, root=setup.cache) as tapped:
        whole = run(path, case, setup, instrumented=tapped)
    whole.provenance |= {"runtime": "Interpreter", "packing": ""}
    if oracle is None:
        return whole, None
    with instrumented_copy(path, isolate=True, root=setup.cache) as cut:
        return whole, run(path, case, setup, instrumented=cut, inject=oracle.arrays)


def _run_packed_once(
    path: Path, case: Case, oracle: Trace | None, setup: Setup
) -> tuple[Trace, Trace | None]:
    """Runs ``run_file`` where all signatures of a file share the packed weights."""
    alone = oracle is not None
    assert setup.opener is not None
    with instrumented_copy(path, isolate=alone, beside=alone, root=setup.cache) as both:
        setup = replace(setup, opener=_opening_once(both, setup.opener))
        whole = run(path, case, setup, instrumented=both)
        if oracle is None:
            return whole, None
        return whole, run(path, case, setup, instrumented=both, inject=oracle.arrays)


def _opening_once(kept: Path, opener: Callable[..., Any]) -> Callable[..., Any]:
    """Returns an opener that opens the file ``kept`` only once, and so packs its weights once."""
    opened: list[Any] = []

    def open_(path: Path, **options: Any) -> Any:
        if path != kept:
            return opener(path, **options)
        if not opened:
            opened.append(opener(path, **options))
        return opened[0]

    return open_


def run_every_tap(path: Path, case: Case, oracle: Trace, setup: Setup | None = None) -> Trace:
    """Runs a file and feeds each tap with the oracle's values of the taps that it is computed from.

    Args:
        path, case, setup: as for ``run_file``.
        oracle: float64; rounded to float32.

    Raises:
        ArtifactError: as for ``run``.
    """
    setup = setup or Setup()
    opener, _ = choose_opener(path, case.kernel, setup.memory_budget, own=True)
    setup = replace(setup, opener=opener)
    with instrumented_copy(path, every_tap=True, root=setup.cache) as cut:
        trace = run(path, case, setup, instrumented=cut, inject=oracle.arrays)
        found = _instrumentation(cut, isolated=True)
    assert found is not None
    blocks = blocks_of(path, case)
    for step in case.steps:
        forget_unfed(trace, step.name, blocks, found.located[step.signature].taps)
    return trace


def blocks_of(path: Path, case: Case) -> int:
    """Returns how many transformer blocks a file has, from the caches that the case's steps take.

    Other signatures of a file may have no caches, e.g. one that embeds tokens.
    """
    signatures = ModelFile(path).signatures
    called = {step.signature for step in case.steps} & signatures.keys()
    return max((signatures[name].num_blocks for name in called), default=0)


def run(
    path: Path,
    case: Case,
    setup: Setup | None = None,
    *,
    instrumented: Path | None = None,
    inject: Mapping[str, np.ndarray] | None = None,
) -> Trace:
    """Runs every step of ``case`` from an empty cache.

    Args:
        path: the converted file.
        case: the steps, the kernels, the cache's layout and length, and the masks.
        setup: how the file is run.
        instrumented: a copy written by ``flatbuffer.instrument``, for the inner taps.
        inject: the inputs of each block and the final norm, ``"prefill.0/embed"``,
            ``"prefill.0/blocks.0.out"``, …, (B, T, C), real rows only. Needs an ``instrumented``
            copy that isolates; everything is then recorded from that copy.

    Returns:
        The trace. ``unavailable`` gives the reasons for taps that could not be read.

    Raises:
        ArtifactError: a file cannot be opened or does not fit the case, a step writes past the
            cache's end (the runtime would move it back over older rows), or the runtime failed.
    """
    setup = setup or Setup()
    num_blocks = blocks_of(path, case)
    trace = Trace(
        provenance={
            "backend": "tflite",
            "kernel": case.kernel,
            "num_threads": setup.threads,
            "file": path.name,
            "file_sha256": entries.file_digest(path, root=setup.cache),
            "isolated": inject is not None,
            "versions": entries.versions(),
        }
    )
    if inject is not None:
        if instrumented is None:
            raise ValueError("inject needs an instrumented file")
        for step, outputs, located in _drive(instrumented, case, setup, inject):
            _record(trace, case, step, num_blocks, outputs, outputs, located)
            _forget_unfed(trace, step, num_blocks, located)
        return trace

    outer = [outputs for _, outputs, _ in _drive(path, case, setup, untouched=True)]
    if instrumented is None:
        for step, outputs in zip(case.steps, outer, strict=True):
            _record(trace, case, step, num_blocks, outputs, {}, None)
        return trace
    for (step, outputs, located), untouched in zip(
        _drive(instrumented, case, setup), outer, strict=True
    ):
        changed = _first_difference(untouched, outputs)
        if changed is None:
            _record(trace, case, step, num_blocks, untouched, outputs, located)
        else:
            reason = f"reading inner taps changed {changed!r} of the same step"
            _record(trace, case, step, num_blocks, untouched, {}, located, reason)
    return trace


def _drive(
    path: Path,
    case: Case,
    setup: Setup,
    inject: Mapping[str, np.ndarray] | None = None,
    *,
    untouched: bool = False,
) -> Iterator[tuple[Step, dict[str, np.ndarray], Located | None]]:
    """Yields each step's outputs. Only one interpreter is alive, and only until the last step."""
    told = _instrumentation(path, isolated=inject is not None)
    opener = setup.opener or open_file
    interpreter = opener(path, kernel=case.kernel, num_threads=setup.threads)
    signatures = {} if told is None else ModelFile(path).signatures
    runners: dict[str, Any] = {}
    cache: dict[str, np.ndarray] = {}
    try:
        for step in case.steps:
            name, located, taps_of = step.signature, None, {}
            if told is not None:
                located = told.located.get(name)
                name = told.signature(name, isolated=inject is not None)
            if located is not None and name in signatures:
                taps_of = by_tap(signatures[name], located)
            if name not in runners:
                runners[name] = runner_of(interpreter, path, name)
            runner = runners[name]
            details = runner.get_input_details()
            shapes = {name: tuple(item["shape"]) for name, item in details.items()}
            check_room(path, case, step, shapes)
            if not cache:
                cache = {n: np.zeros(s, np.float32) for n, s in shapes.items() if "kv_cache" in n}
            inputs = {
                "tokens": np.array([step.padded_tokens], np.int32),
                "input_pos": np.arange(step.start, step.start + step.length, dtype=np.int32),
                **cache,
                **masks_of(case, step, shapes),
                **_injected(step, shapes, inject or {}, located),
            }
            outputs = call(runner, path, step, inputs, shapes, first=step is case.steps[0])
            cache = {name: outputs[name] for name in cache}
            setup.tick()
            for tap, output in taps_of.items():
                outputs[TAP + tap] = outputs[output]
            yield step, outputs, located
        if untouched and setup.edges:
            # Here, because another interpreter would have to pack the weights again.
            setup.walked(walk_open(interpreter, path, case, setup.edges, cache))
    finally:
        del interpreter
        runners.clear()


def _instrumentation(path: Path, *, isolated: bool) -> Instrumentation | None:
    found = Instrumentation.find(path)
    if isolated and not (found and found.isolated):
        raise ArtifactError(
            "its blocks cannot be fed one by one",
            where=path,
            expected="a copy written by flatbuffer.instrument(isolate=True)",
            fix="instrument the converted file again",
        )
    return found


def _injected(
    step: Step,
    shapes: Mapping[str, tuple[int, ...]],
    inject: Mapping[str, np.ndarray],
    located: Located | None,
) -> dict[str, np.ndarray]:
    """Returns the inputs of the cut points, padded by repeating the last real row.

    A pad row's content reaches no real row; a repeated row is sure to be in the norms' range.
    """
    inputs = {}
    for name, shape in shapes.items():
        if name.startswith(INJECT) and located is not None:
            tap = name[len(INJECT) :]
            rows = np.asarray(inject[f"{step.name}/{tap}"], np.float32)
            pads = step.length - rows.shape[1]
            padded = np.concatenate([rows, np.repeat(rows[:, -1:], pads, axis=1)], axis=1)
            inputs[name] = located.taps[tap].back(padded, shape)
    return inputs


def _record(
    trace: Trace,
    case: Case,
    step: Step,
    num_blocks: int,
    outer: Mapping[str, np.ndarray],
    inner: Mapping[str, np.ndarray],
    located: Located | None,
    reason: str = "inner taps need an instrumented copy of the file",
) -> None:
    """Adds one step to the trace, in the standard order, cut to its real rows."""
    missing = located.missing if located else {}
    for tap in taps.standard_taps(num_blocks):
        if tap.startswith("kv."):
            _, block, which = tap.split(".")
            cache = outer[f"kv_cache_{which}_{block}"]
            array = cache.transpose(CACHE_ORDER[case.kv_layout][which])[:, : step.end]
        elif tap == taps.LOGITS and tap in outer:
            array = outer[tap][:, : len(step.tokens)]
        elif located and tap in located.taps and TAP + tap in inner:
            array = located.taps[tap].bring(inner[TAP + tap])[:, : len(step.tokens)]
        else:
            why = "the signature returns no logits" if tap == taps.LOGITS else reason
            trace.unavailable[f"{step.name}/{tap}"] = missing.get(tap, why)
            continue
        # A copy, because a view of a few rows would keep the whole cache alive.
        trace.add(step.name, tap, np.array(array, order="C"))


def _forget_unfed(trace: Trace, step: Step, num_blocks: int, located: Located | None) -> None:
    """Removes the taps of each part whose input was not found, because nothing fed that part.

    Such a part ran on the output of the part before it, which the floor of isolated runs does not
    allow for.
    """
    feeds = [taps.EMBED, *(taps.block(index, "out") for index in range(num_blocks))]
    found = located.taps if located else {}
    for part, feed in enumerate(feeds):
        if feed in found:
            continue
        for tap in taps.standard_taps(num_blocks):
            index = num_blocks if tap in (taps.FINAL_NORM, taps.LOGITS) else taps.block_index(tap)
            key = f"{step.name}/{tap}"
            if index == part and trace.arrays.pop(key, None) is not None:
                trace.unavailable[key] = f"not possible: {feed} was not found in the file"


def _first_difference(
    untouched: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> str | None:
    """Returns the first output that is not bitwise equal (NaNs and signs of zero included)."""
    for name, array in untouched.items():
        if name not in other or array.tobytes() != other[name].tobytes():
            return name
    return None
