"""Runs a .tflite in the LiteRT interpreter, step by step, and records its taps.

Logits and KV caches always come from the untouched file. Inner taps come from an instrumented
copy, and count only where that copy's logits and caches are bitwise those of the untouched file:
reading intermediates can change what the runtime computes (LiteRT #8928).

Nothing here imports torch, so that it also runs on a device host.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeverify.backends import compiled_model
from edgeverify.backends.packing import choose_packing, require_memory
from edgeverify.core import taps
from edgeverify.core.case import Case, Step
from edgeverify.core.errors import ArtifactError
from edgeverify.core.localise import forget_unfed
from edgeverify.core.masks import masks_of
from edgeverify.core.quiet import quiet
from edgeverify.core.store import entries
from edgeverify.core.trace import Trace
from edgeverify.litert.flatbuffer import (
    INJECT,
    TAP,
    Instrumentation,
    Located,
    ModelFile,
    Skeleton,
    by_tap,
    instrument,
    instrumented,
)

LARGEST_KEPT_COPY = 64 * 2**20
RESOLVERS = {
    "xnnpack": OpResolverType.BUILTIN,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}
# The order of a cache's axes that gives (B, T, N, H), by layout, for K and V.
CACHE_ORDER = {
    "default": {"k": (0, 1, 2, 3), "v": (0, 1, 2, 3)},
    "transposed": {"k": (0, 2, 1, 3), "v": (0, 3, 1, 2)},
}


@dataclass(frozen=True)
class Setup:
    """How a file is run, beside what its case says.

    Attributes:
        num_threads: of the interpreter; the machine's if None.
        cache: another cache than the default one.
        memory_budget: bytes that the process may take; what is available if None.
        opener: opens a file, from ``choose_opener`` or of another runtime; ``open_file`` if None.
        tick: called after each step.
    """

    num_threads: int | None = None
    cache: Path | None = None
    memory_budget: int | None = None
    opener: Callable[..., Any] | None = None
    tick: Callable[[], None] = lambda: None

    @property
    def threads(self) -> int:
        return self.num_threads or os.cpu_count() or 1


def run_file(
    path: Path, case: Case, oracle: Trace | None = None, setup: Setup | None = None
) -> tuple[Trace, Trace | None]:
    """Runs a file as a whole, and block by block on the oracle's inputs.

    The two instrumented copies, or their tables, are kept in the cache. Where XNNPACK packs weights
    on the disk, they are one: all signatures of a file share them there. Large files are run that
    way, too, where they need not be, for it is faster.

    Args:
        path: the converted file; large copies of it are made beside it for the time being.
        case: what is run.
        oracle: the trace whose block inputs the blocks are fed with, rounded to float32.
        setup: how; its ``opener`` is chosen here. ``tick`` is called once for each step of the
            case, though each is run up to three times.

    Returns:
        The trace of the whole file, and that of its blocks in isolation (None without oracle). The
        first one's provenance has, as ``runtime``, what ran the file, and, as ``packing``, what
        ``choose_opener`` says.

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
            # What it refuses, the interpreter may well take: of a file that both refuse, the
            # interpreter's reason is told.
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
    """``run_file`` where all signatures of a file share the packed weights."""
    alone = oracle is not None
    assert setup.opener is not None
    with instrumented_copy(path, isolate=alone, beside=alone, root=setup.cache) as both:
        setup = replace(setup, opener=_opening_once(both, setup.opener))
        whole = run(path, case, setup, instrumented=both)
        if oracle is None:
            return whole, None
        return whole, run(path, case, setup, instrumented=both, inject=oracle.arrays)


def _opening_once(kept: Path, opener: Callable[..., Any]) -> Callable[..., Any]:
    """The opener, which opens one of the files once, and so packs its weights once."""
    opened: list[Any] = []

    def open_(path: Path, **options: Any) -> Any:
        if path != kept:
            return opener(path, **options)
        if not opened:
            opened.append(opener(path, **options))
        return opened[0]

    return open_


def run_every_tap(path: Path, case: Case, oracle: Trace, setup: Setup | None = None) -> Trace:
    """Runs a file with every tap fed with the oracle's value of the taps that it is made from.

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
    for step in case.steps:
        forget_unfed(trace, step.name, blocks_of(path), found.located[step.signature].taps)
    return trace


def blocks_of(path: Path) -> int:
    """How many transformer blocks a file has, by the caches of its signatures."""
    return next(iter(ModelFile(path).signatures.values())).num_blocks


@contextmanager
def instrumented_copy(
    path: Path,
    *,
    isolate: bool = False,
    every_tap: bool = False,
    beside: bool = False,
    root: Path | None = None,
) -> Iterator[Path]:
    """A copy of ``path`` that also returns its taps.

    A small one comes from the cache. Of a large one the cache keeps the table, and the weights are
    put behind it for the time being: they take as much room as the file, and no time.
    """
    cuts: Any = {"isolate": isolate, "every_tap": every_tap, "beside": beside}
    sources = entries.source_digest("litert/flatbuffer/*.py")
    key = entries.digest(sources, entries.file_digest(path, root=root), cuts)
    if path.stat().st_size <= LARGEST_KEPT_COPY:

        def make(target: Path) -> None:
            instrument(path, target, **cuts)

        yield entries.cached("instrumented", key, ".tflite", make, root=root)
        return

    def make_table(target: Path) -> None:
        skeleton, _ = instrumented(path, **cuts)
        skeleton.save(target)

    table = entries.cached("instrumented", key, ".safetensors", make_table, root=root)
    with entries.working_folder(path.parent) as folder:
        temporary = folder / path.name
        Skeleton.load(table).assemble(path, temporary)
        yield temporary


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
        case: the steps; also the kernels, the cache's layout and length, and the masks.
        setup: how it is run.
        instrumented: a copy written by ``flatbuffer.instrument``, for the inner taps.
        inject: what each block and the final norm are fed with, ``"prefill.0/embed"``,
            ``"prefill.0/blocks.0.out"``, …, (B, T, C), real rows only. Needs an ``instrumented``
            copy that isolates; everything is then recorded from that copy.

    Returns:
        The trace, with the reasons for taps that could not be read in ``unavailable``.

    Raises:
        ArtifactError: a file cannot be opened or does not fit the case, a step writes past the
            cache's end (the runtime would move it back over older rows), or the runtime failed.
    """
    setup = setup or Setup()
    num_blocks = blocks_of(path)
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

    outer = [outputs for _, outputs, _ in _drive(path, case, setup)]
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
) -> Iterator[tuple[Step, dict[str, np.ndarray], Located | None]]:
    """Yields each step's outputs. One interpreter is alive, and only until the last step."""
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


def choose_opener(
    path: Path, kernel: str, memory_budget: int | None = None, *, own: bool = False
) -> tuple[Callable[..., Any], str]:
    """Chooses what a file and its copies are opened with, by what XNNPACK's packed weights take.

    Args:
        path: the file.
        kernel: ``xnnpack``, ``builtin`` or ``reference``.
        memory_budget: bytes that the process may take; what is available if None.
        own: as for ``choose_packing``.

    Returns:
        ``open_file``, or what opens a ``CompiledModel`` whose packed weights are on the disk, which
        computes the same bits (held by a test); and why, where the memory is too short for them.

    Raises:
        NoRoomError: they fit nowhere.
    """
    if kernel != "xnnpack" or (chosen := choose_packing(path, memory_budget, own=own)).in_memory:
        return open_file, ""
    told = "" if chosen.fits_memory else str(chosen)
    return partial(compiled_model.open_file, packed_on_disk=True), told


def open_fitting(path: Path, *, kernel: str, num_threads: int) -> Any:
    """The file, opened with what ``choose_opener`` chooses.

    Raises:
        ArtifactError: the file cannot be opened, or its packed weights fit nowhere.
    """
    opener, _ = choose_opener(path, kernel)
    return opener(path, kernel=kernel, num_threads=num_threads)


def open_file(path: Path, *, kernel: str, num_threads: int) -> Interpreter:
    """An interpreter of ``path`` with the given kernels.

    Raises:
        ArtifactError: the file cannot be opened, or its packed weights do not fit the memory.
    """
    if kernel == "xnnpack":
        require_memory(path)
    try:
        with quiet(show=False):
            return Interpreter(
                str(path),
                num_threads=num_threads,
                experimental_op_resolver_type=RESOLVERS[kernel],
            )
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"the runtime cannot open it ({error})",
            where=path,
            expected="a whole .tflite file that this version of ai-edge-litert reads",
            fix="convert the model again, or update ai-edge-litert",
        ) from error


def runner_of(interpreter: Any, path: Path, signature: str) -> Any:
    """The runner of a signature.

    Raises:
        ArtifactError: the file has no such signature.
    """
    try:
        return interpreter.get_signature_runner(signature)
    except ValueError as error:
        raise ArtifactError(
            f"has no signature {signature!r}",
            where=path,
            expected=f"one of {', '.join(interpreter.get_signature_list()) or '(none at all)'}",
            fix="convert the model again with the prefill lengths of the case",
        ) from error


def check_room(path: Path, case: Case, step: Step, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses what the runtime would take, and do wrong without a word.

    Raises:
        ArtifactError: the file's cache is not the case's, or the step ends past its last row.
    """
    rows = shapes["kv_cache_k_0"][CACHE_ORDER[case.kv_layout]["k"][1]]
    if rows != case.kv_cache_len:
        raise ArtifactError(
            f"its KV cache has {rows} rows in the {case.kv_layout} layout",
            where=path,
            expected=f"{case.kv_cache_len}, as in the case",
            fix="convert the model again, with the case's KV layout and cache length",
        )
    if step.start + step.length > rows:
        raise ArtifactError(
            f"step {step.name} writes up to row {step.start + step.length} of a KV cache of {rows}"
            " (the runtime would overwrite older rows instead of failing)",
            where=path,
            expected=f"at most {rows} rows",
            fix="lengthen the cache, or shorten the prompt or the decode steps",
        )


def _injected(
    step: Step,
    shapes: Mapping[str, tuple[int, ...]],
    inject: Mapping[str, np.ndarray],
    located: Located | None,
) -> dict[str, np.ndarray]:
    """What the cut points are fed with, padded by repeating the last real row.

    A pad row's content reaches no real row; a repeated one is sure to be in the norms' range.
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


def call(
    runner: Any,
    path: Path,
    step: Step,
    inputs: dict[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    first: bool = False,
) -> dict[str, np.ndarray]:
    """Calls a signature with exactly the inputs it takes.

    Args:
        runner: from ``runner_of``.
        path, step: told in errors.
        inputs: by name.
        shapes: of the signature's inputs, by name.
        first: whether it is the interpreter's first call, which announces the delegate.

    Returns:
        The outputs, by name.

    Raises:
        ArtifactError: the inputs do not fit the signature, or the runtime failed.
    """
    given = {name: value.shape for name, value in inputs.items()}
    if given != dict(shapes):
        wrong = sorted(n for n in given.keys() | shapes.keys() if given.get(n) != shapes.get(n))
        listed = ", ".join(f"{n}: {shapes.get(n, 'no input')}" for n in wrong[:4])
        raise ArtifactError(
            f"signature {step.signature!r} takes other inputs than the case gives ({listed})",
            where=path,
            expected=", ".join(f"{n}: {given.get(n, 'no input')}" for n in wrong[:4]),
            fix="convert the model again for this case",
        )
    try:
        # The first call of an interpreter announces the delegate on standard error.
        with quiet(first, show=False):
            return runner(**inputs)
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"the runtime failed at step {step.name} ({error})",
            where=path,
            expected=f"signature {step.signature!r} to run",
            fix="try another --kernel; if that passes, report it to LiteRT",
        ) from error


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
        # A copy, or a view of a few rows would keep the whole cache alive.
        trace.add(step.name, tap, np.array(array, order="C"))


def _forget_unfed(trace: Trace, step: Step, num_blocks: int, located: Located | None) -> None:
    """Takes back the taps of each part whose input was not found, so that nothing fed it.

    It ran on what the part before gave it, which the floor of isolated runs does not allow for.
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
    """The first output that is not bitwise the same (NaNs and signs of zero included)."""
    for name, array in untouched.items():
        if name not in other or array.tobytes() != other[name].tobytes():
            return name
    return None
