"""The stages of a check, each from the cache where it can be.

A ``Run`` is one port with one checkpoint and one case. Its weights are loaded once and shared by
every model that is built from them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgeverify.audits.bitwise import checksums
from edgeverify.backends.streaming import FusingOnDisk, put_on_disk
from edgeverify.core import taps
from edgeverify.core.case import Case
from edgeverify.core.errors import PortError
from edgeverify.core.memory import peak_memory
from edgeverify.core.progress import Progress
from edgeverify.core.results import FileFacts
from edgeverify.core.store import entries
from edgeverify.core.trace import Trace
from edgeverify.hf.checkpoints import Checkpoint, open_checkpoint
from edgeverify.hf.tokenizer import RememberedTokenizer
from edgeverify.legs import inputs
from edgeverify.legs.ports import load_port
from edgeverify.legs.selectors import Selectors
from edgeverify.litert.bundle.writer import require_engine
from edgeverify_models.port import LoadError, Port, build_model

if TYPE_CHECKING:
    from torch import nn

# A change to what a trace or a converted file holds must change this, so that older ones are not
# taken for current.
CACHE_VERSION = 1
SMALL_MODEL = 10_000_000  # parameters


@dataclass
class Log:
    """What a run took and made; all variants of a run write into one.

    Attributes:
        timings: stage → seconds.
        peaks: stage → the process's peak of memory after it, in bytes, where the stage raised it.
        files: leg → what its file is made of.
        runtime: what ran the last file.
    """

    timings: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    files: dict[str, FileFacts] = field(default_factory=dict)
    runtime: str = ""


@dataclass
class _Loaded:
    """A value that is made when first asked for, and can be let go of."""

    value: Any = None


@dataclass(frozen=True, eq=False)
class Run:
    """One check: a port with a checkpoint and a case, and where its results are cached.

    Attributes:
        streamed: the weights stay on the disk, and so do traces (see
            ``edgeverify.backends.streaming``).
        memory: why they are streamed, or why not.
        memory_budget: bytes that the process may take; what the machine has if None.
        log: what was taken and made so far.
    """

    port: Port
    checkpoint: Checkpoint
    case: Case
    cache: Path | None = None
    verbose: bool = False
    progress: Progress = field(default_factory=Progress)
    streamed: bool = False
    memory: str = ""
    memory_budget: int | None = None
    log: Log = field(default_factory=Log)
    _state: _Loaded = field(default_factory=_Loaded)
    _model: _Loaded = field(default_factory=_Loaded)

    def of_case(self, case: Case) -> Run:
        """The run of another case: the same weights, and a model of its own."""
        return replace(self, case=case, _model=_Loaded())

    def of_checkpoint(self, checkpoint: Checkpoint) -> Run:
        """The run of another checkpoint: weights, model, files of its own."""
        log = replace(self.log, files={}, runtime="")
        return replace(self, checkpoint=checkpoint, log=log, _state=_Loaded(), _model=_Loaded())

    @property
    def hf_config(self) -> Mapping[str, Any]:
        return self.checkpoint.hf_config

    def state(self) -> dict[str, torch.Tensor]:
        """The weights: HF names → float32 tensors."""
        if self._state.value is None:
            with self.timed("load weights"):
                load = self.checkpoint.mapped if self.streamed else self.checkpoint.tensors
                self._state.value = load()
        return self._state.value

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
        if self._model.value is None:
            self._model.value = _build_reauthored(self)
        return self._model.value

    def reload(self) -> None:
        """Loads the weights anew; a model that was built keeps those that it has."""
        self._state.value = None
        self.state()

    def release(self) -> None:
        """Lets go of the weights and the model, which the runtime's own copies need room for."""
        self._state.value = self._model.value = None
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
        """A stage that progress is told of and whose seconds are added to the log's ``timings``.

        If the process takes more memory than ever before, ``peaks`` gets how much, in bytes.
        """
        start, before = time.perf_counter(), peak_memory()
        try:
            with self.progress.stage(name, total) as tick:
                yield tick
        finally:
            elapsed = time.perf_counter() - start
            timings = self.log.timings
            timings[name] = round(timings.get(name, 0.0) + elapsed, 3)
            if before is not None and (peak := peak_memory() or 0) > before:
                self.log.peaks[name] = peak


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


def prepare(
    port: Port | str, chosen: Selectors, *, verbose: bool, progress: Progress | None
) -> tuple[Run, Any | None]:
    """Opens the checkpoint and plans the case; loads no weights."""
    resolved = load_port(port) if isinstance(port, str) else port
    opened = open_checkpoint(
        chosen.checkpoint,
        resolved,
        size=chosen.size,
        seed=chosen.seed,
        trust_remote_code=chosen.trust_remote_code,
        cache_root=chosen.cache,
    )
    try:
        max_positions = resolved.model_config(opened.hf_config).max_seq_len
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise PortError(
            f"model_config raised {type(error).__name__}: {error}",
            where=f"port {resolved.name!r}",
            expected="a ModelConfig of this HF config",
            fix="correct the port's model_config, or take another checkpoint",
        ) from error
    tokenizer = None
    if opened.tokenizer_dir is not None:
        tokenizer = RememberedTokenizer(
            opened.tokenizer_dir,
            opened.gguf_file,
            trust_remote_code=chosen.trust_remote_code,
            cache=chosen.cache,
        )
    require_engine(chosen.runtimes, tokenizer)
    case = inputs.plan_case(resolved, opened, tokenizer, chosen, max_positions)
    run = Run(resolved, opened, case, chosen.cache, verbose, progress or Progress())
    return run, tokenizer
