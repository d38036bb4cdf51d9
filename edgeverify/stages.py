"""The stages of a check, each from the cache where it can be.

A ``Run`` is one port with one checkpoint and one case. Its weights are loaded once and shared by
every model that is built from them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgeverify import fingerprint
from edgeverify.audits.bitwise import checksums
from edgeverify.audits.file_reading import FileReading
from edgeverify.audits.run import Auditor
from edgeverify.backends import reauthored, tflite
from edgeverify.backends.streaming import FusingOnDisk, forgetting, put_on_disk
from edgeverify.core import taps
from edgeverify.core.case import Case
from edgeverify.core.compare import Baseline
from edgeverify.core.errors import PortError
from edgeverify.core.memory import peak_memory
from edgeverify.core.noise import Floor, floor_of, widest
from edgeverify.core.progress import Progress
from edgeverify.core.results import FileFacts, Finding, LegResult
from edgeverify.core.store import entries
from edgeverify.core.store.mapped import forget
from edgeverify.core.trace import Trace
from edgeverify.diagnose import diagnose
from edgeverify.diagnose.operators import op_findings
from edgeverify.hf.checkpoints import Checkpoint
from edgeverify.litert.convert import convert
from models import is_registered
from models.port import LoadError, Port, build_model

if TYPE_CHECKING:
    from torch import nn

# A change to what a trace or a converted file holds must change this, so that older ones are not
# taken for current.
CACHE_VERSION = 1
SMALL_MODEL = 10_000_000  # parameters
REFERENCE_SOURCES = (
    "backends/reference.py",
    "backends/widened_tables.py",
    "backends/float32.py",
    "backends/float64.py",
    "hf/config.py",
    "core/noise.py",
    "hf/openelm.py",
    "core/taps.py",
)
AUDIT_SOURCES = (
    "audits/*.py",
    "core/case.py",
    "litert/flatbuffer/*.py",
    "hf/config.py",
    "hf/openelm.py",
    "core/results.py",
    "core/taps.py",
)


class _NotKeptError(Exception):
    """What was made is not for the cache."""


@dataclass
class Run:
    """One check: what is run, where it is cached, how long each stage took.

    ``streamed``: the weights stay on the disk, and so do traces (see
    ``edgeverify.backends.streaming``).
    ``memory``: why, or why not. ``memory_budget``: bytes that the process may take; what the
    machine has if None. ``runtime``: what ran the last file.
    """

    port: Port
    checkpoint: Checkpoint
    case: Case
    cache: Path | None = None
    verbose: bool = False
    progress: Progress = field(default_factory=Progress)
    timings: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    files: dict[str, FileFacts] = field(default_factory=dict)
    streamed: bool = False
    memory: str = ""
    memory_budget: int | None = None
    runtime: str = ""
    _state: dict[str, torch.Tensor] | None = None
    _model: nn.Module | None = None

    @property
    def hf_config(self) -> Mapping[str, Any]:
        return self.checkpoint.hf_config

    @property
    def window(self) -> int | None:
        return self.hf_config.get("sliding_window")

    def state(self) -> dict[str, torch.Tensor]:
        """The weights: HF names → float32 tensors."""
        if self._state is None:
            with self.timed("load weights"):
                load = self.checkpoint.mapped if self.streamed else self.checkpoint.tensors
                self._state = load()
        return self._state

    @property
    def scratch(self) -> Path:
        """The folder of scratch files."""
        return (self.cache or entries.cache_root()) / "scratch"

    def lean(self, trace: Trace) -> Trace:
        """The trace, on the disk where the run is streamed."""
        return trace.spilled(self.scratch) if self.streamed else trace

    def model(self) -> nn.Module:
        """The re-authored model, loaded.

        Raises:
            PortError: the weights do not fit it, one to one.
        """
        if self._model is None:
            self._model = _build_reauthored(self)
        return self._model

    def reload(self) -> None:
        """Loads the weights anew; a model that was built keeps those that it has."""
        self._state = None
        self.state()

    def release(self) -> None:
        """Lets go of the weights and the model, which the runtime's own copies need room for."""
        self._state = self._model = None
        gc.collect()

    def expected(self, oracle: Trace) -> tuple[str, ...]:
        """The ``step/tap`` keys every candidate must have, in forward order.

        The number of blocks is the reference's: a port that has fewer must not be asked for less.
        """
        blocks = sum(key.startswith(f"{self.case.steps[0].name}/kv.") for key in oracle) // 2
        keys = []
        for step in self.case.steps:
            logits = step.is_decode or self.case.prefill_logits
            keys += [f"{step.name}/{tap}" for tap in taps.standard_taps(blocks, logits=logits)]
        return tuple(keys)

    @contextmanager
    def timed(self, name: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """A stage that progress is told of and whose seconds are added to ``timings``.

        If the process takes more memory than ever before, ``peaks`` gets how much, in bytes.
        """
        start, before = time.perf_counter(), peak_memory()
        try:
            with self.progress.stage(name, total) as tick:
                yield tick
        finally:
            elapsed = time.perf_counter() - start
            self.timings[name] = round(self.timings.get(name, 0.0) + elapsed, 3)
            if before is not None and (peak := peak_memory() or 0) > before:
                self.peaks[name] = peak


def is_large(run: Run) -> bool:
    """Whether the model has so many parameters that a second core is of use."""
    return sum(tensor.numel() for tensor in run.state().values()) >= SMALL_MODEL


@contextmanager
def fitting_threads(run: Run) -> Iterator[None]:
    """Runs a small model on one thread.

    Its operations take microseconds, and waiting for a second thread takes longer than they do:
    on a busy machine a tiny Gemma 2 is 10 times faster on one thread than on two.
    """
    before = torch.get_num_threads()
    if not is_large(run):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _reference() -> Any:
    """The reference's backend. It imports transformers' models, so: where it is to run."""
    from edgeverify.backends import reference

    return reference


def reference_baselines(
    run: Run, *, with_file: bool, summed: Baseline | None = None
) -> dict[str, Baseline]:
    """What each leg is held against; cached. The case gets its decode tokens here.

    The re-authored model runs on PyTorch as the reference does; the file's kernels sum one term
    after another, so the floor of its leg has that order, too (see
    ``edgeverify.backends.float32``).

    Args:
        run: the checkpoint and the case.
        with_file: whether the leg ``conversion`` is asked for.
        summed: the same baseline of a model of the same geometry. Its floors then stand in for
            linear layers that sum in order, which are slow to run.
    """
    key = entries.digest(
        "reference",
        CACHE_VERSION,
        entries.versions(),
        entries.source_digest(*REFERENCE_SOURCES),
        run.checkpoint.identity,
        [asdict(step) for step in run.case.steps],
        run.case.greedy,
    )
    built: list[Any] = []

    def model() -> Any:
        if not built:
            built.append(_reference().build(run.hf_config, run.state()))
        return built[0]

    def cached(kind: str, make: Callable[[], Trace]) -> Trace:
        write = lambda path: make().save(path)  # noqa: E731
        path = entries.cached(kind, key, ".safetensors", write, root=run.cache)
        return Trace.load(path, mapped=run.streamed)

    def stepwise(inject: Trace | None) -> Trace:
        steps = len(run.case.steps)
        with forgetting(model()), run.timed("reference, float32", steps) as tick:
            trace, used = _reference().run(model(), run.case, inject=inject, tick=tick)
        trace.provenance["decode_tokens"] = [s.tokens[0] for s in used.steps if s.is_decode]
        return trace

    def floor(inject: Trace | None, *, sequential: bool) -> Trace:
        """The other float32 run's floor."""
        name = "reference, float32 summed in order" if sequential else "reference, float32"
        with forgetting(model()), run.timed(name):
            other = _reference().run_otherwise(
                model(), run.case, inject=inject, sequential=sequential, linear=summed is None
            )
        return Trace(dict(floor_of(oracle.arrays, other.arrays)))

    def oracle_run() -> Trace:
        with forgetting(model()), run.timed("oracle, float64"):
            return _reference().run_oracle(model(), run.case)

    def isolated_floor() -> Trace:
        first = floor_of(oracle.arrays, stepwise(oracle).arrays)
        return Trace(dict(widest(first, floor(oracle, sequential=False).arrays)))

    own = cached("reference", lambda: stepwise(None))
    run.case = run.case.with_decode_tokens(own.provenance["decode_tokens"])
    oracle = cached("oracle", oracle_run)
    other = cached("floor", lambda: floor(None, sequential=False))
    whole = widest(floor_of(oracle.arrays, own.arrays), other.arrays)
    isolated = cached("isolated-floor", isolated_floor).arrays
    baselines = {"authoring": Baseline(oracle, whole, isolated, own)}
    if with_file:
        kind = "summed-floor" if summed is None else "partly-summed-floor"
        floors: list[Floor] = [whole, cached(kind, lambda: floor(None, sequential=True)).arrays]
        alone: list[Floor] = [
            isolated,
            cached(
                kind.replace("floor", "isolated-floor"), lambda: floor(oracle, sequential=True)
            ).arrays,
        ]
        if summed is not None:
            floors.append(summed.floor)
            alone.append(summed.isolated_floor)
        baselines["conversion"] = Baseline(oracle, widest(*floors), widest(*alone), own)
    return baselines


def _build_reauthored(run: Run) -> nn.Module:
    state = run.state()
    try:
        mask_cache = 0 if run.case.mask_as_input else run.case.kv_cache_len
        before = checksums(state)
        with FusingOnDisk(run.scratch) if run.streamed else nullcontext():
            model = build_model(run.port, run.hf_config, state, mask_cache_size=mask_cache)
    except (LoadError, KeyError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise PortError(
            str(error) if isinstance(error, LoadError) else f"{type(error).__name__}: {error}",
            where=f"port {run.port.name!r} with {run.checkpoint.description}",
            expected="a model that takes every tensor of the checkpoint exactly once",
            fix="correct the port's tensor_names or model_config",
        ) from error
    after = checksums(state, before)
    if run.streamed:
        written = [state[name] for name in state if after[name] != before[name]]
        put_on_disk(model, run.scratch, written)
    if after != before:
        # The port has written into the tensors that it was given. The model keeps what it made of
        # them; the reference and the audits must have the checkpoint's own.
        run.reload()
    return model


def audit_port(run: Run, auditor: Auditor) -> None:
    """The audits of config and weights, before anything runs.

    Raises:
        PortError: the weights do not fit the model; then the config alone has been audited.
    """
    try:
        model = run.model()
    except PortError:
        auditor.config_alone(run.port.model_config(run.hf_config))
        raise
    with run.timed("audits"):
        auditor.port(model, run.state())


def audit_file(run: Run, auditor: Auditor, path: Path) -> None:
    """The audits of the converted file, added to those of the port.

    What was read from the same file, for the same case and checkpoint, is in the cache.
    """
    model, case = run.model(), run.case
    key = entries.digest(
        "read-file",
        CACHE_VERSION,
        entries.versions(),
        entries.source_digest(*AUDIT_SOURCES),
        entries.file_digest(path, root=run.cache),
        run.checkpoint.identity,
        run.hf_config,
        fingerprint.of_config(model.config),
        [case.kv_layout, list(case.prefill_lengths), case.kv_cache_len, case.decode_batch],
        [case.mask_as_input, case.prefill_logits, list(run.port.mask_kinds), auditor.for_engine],
    )

    def remember(read: Callable[[], FileReading]) -> FileReading:
        found: list[FileReading] = []

        def make(target: Path) -> None:
            found.append(read())
            text = found[0].to_json() if found[0].whole else ""
            if not text:  # not to be kept
                raise _NotKeptError
            target.write_text(text, encoding="utf-8")

        try:
            entry = entries.cached("read-files", key, ".json", make, root=run.cache)
        except _NotKeptError:
            return found[0]
        return found[0] if found else FileReading.from_json(entry.read_text(encoding="utf-8"))

    with run.timed("audits"):
        auditor.file(path, model, run.state(), remember)


def run_reauthored(
    run: Run, oracle: Trace | None, dtype: torch.dtype = torch.float32
) -> tuple[Trace, Trace]:
    """The re-authored model as a whole and, given an oracle, block by block (else empty)."""
    options: dict[str, Any] = {
        "mask_kinds": run.port.mask_kinds,
        "window": run.window,
        "dtype": dtype,
    }
    model = run.model()
    name = "re-authored" if dtype == torch.float32 else "re-authored, float64"
    with run.timed(name, len(run.case.steps) * (1 if oracle is None else 2)) as tick:
        with forgetting(model):
            whole = run.lean(reauthored.run(model, run.case, tick=tick, **options))
            if oracle is None:
                return whole, Trace()
            isolated = reauthored.run(model, run.case, inject=oracle, tick=tick, **options)
        return whole, run.lean(isolated)


def find_causes(run: Run, baseline: Baseline) -> tuple[Finding, ...]:
    """The likely causes of a failed authoring leg.

    It only adds to a verdict that stands without it, so nothing that it raises may get through;
    that it failed is told.
    """
    model, oracle = run.model(), baseline.oracle

    def alone() -> Trace:
        return every_tap_fed(run, oracle, None)

    starts = {step.name: step.start for step in run.case.steps}
    expected = run.expected(oracle)
    with run.timed("diagnose"):
        try:
            return diagnose(
                model, run.hf_config, run.state(), run.case, alone, baseline, expected, starts
            )
        except Exception as error:
            told = f"the cause was not looked for to the end: {type(error).__name__}: {error}"
            return (Finding("authoring.unexplained", "authoring", "", told),)


def converted(run: Run) -> Path:
    """The float .tflite of this model, from the cache or by conversion."""
    case, model = run.case, run.model()
    with forgetting(model):
        probed = reauthored.run(
            model,
            fingerprint.probe(case, run.hf_config["vocab_size"]),
            mask_kinds=run.port.mask_kinds,
            window=run.window,
        )
    key = entries.digest(
        "converted",
        CACHE_VERSION,
        # No registered port imports transformers (tests/test_imports.py), and neither do
        # litert-torch's layers and converter. Another port may do anything.
        entries.versions(*(("transformers",) if is_registered(run.port) else ())),
        run.checkpoint.identity,
        entries.source_digest("litert/convert.py"),
        fingerprint.of_module(model),
        fingerprint.of_trace(probed),
        [case.kv_layout, list(case.prefill_lengths), case.kv_cache_len, case.decode_batch],
        [case.mask_as_input, case.prefill_logits, list(run.port.mask_kinds)],
    )

    def make(path: Path) -> None:
        with run.timed("convert"):
            convert(model, case, path, mask_kinds=run.port.mask_kinds, verbose=run.verbose)
            forget(*model.parameters())

    return entries.cached("converted", key, ".tflite", make, root=run.cache)


def run_file(run: Run, path: Path, oracle: Trace) -> tuple[Trace, Trace | None]:
    """The untouched file with its inner taps read from a copy, and the file block by block."""
    run.release()
    with run.timed("run .tflite", len(run.case.steps)) as tick:
        whole, isolated = tflite.run_file(
            path,
            run.case,
            oracle,
            mask_kinds=run.port.mask_kinds,
            window=run.window,
            cache=run.cache,
            memory_budget=run.memory_budget,
            tick=tick,
        )
    run.runtime = whole.provenance["runtime"]
    return run.lean(whole), None if isolated is None else run.lean(isolated)


def every_tap_fed(run: Run, oracle: Trace, path: Path | None) -> Trace:
    """The re-authored model, or its file, with every tap fed with the oracle's values."""
    options: dict[str, Any] = {"mask_kinds": run.port.mask_kinds, "window": run.window}
    with run.timed("sublayer by sublayer"):
        if path is None:
            model = run.model()
            return reauthored.run(model, run.case, inject=oracle, every_tap=True, **options)
        options |= {"cache": run.cache, "memory_budget": run.memory_budget}
        return tflite.run_every_tap(path, run.case, oracle, **options)


def op_sources(run: Run, path: Path, leg: LegResult) -> tuple[Finding, ...]:
    """The operators of a failing file that are to blame.

    The search only adds to a verdict that stands without it, so nothing that it raises may get
    through; that it failed is told.
    """
    with run.timed("find the operators"):
        try:
            return op_findings(
                path,
                leg,
                run.model(),
                run.case,
                mask_kinds=run.port.mask_kinds,
                window=run.window,
            )
        except Exception as error:
            told = f"the operator was not found: {type(error).__name__}: {error}"
            return (Finding("conversion.op.unchecked", "conversion", "", told),)


def own_baseline(run: Run, own: Trace, reference_: Baseline) -> Baseline:
    """The re-authored model in float64 as the oracle of its own file.

    The floor is the larger of its own and the reference's: the noise of a right float32 run does
    not depend on which of the two is asked.
    """
    oracle, _ = run_reauthored(run, None, torch.float64)
    _, isolated = run_reauthored(run, oracle)
    return Baseline(
        oracle,
        widest(floor_of(oracle.arrays, own.arrays), reference_.floor),
        widest(floor_of(oracle.arrays, isolated.arrays), reference_.isolated_floor),
        own,
    )
