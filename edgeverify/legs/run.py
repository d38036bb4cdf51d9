"""The stages of a check; each stage takes its result from the cache if it can.

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

# Change this number whenever the contents of a trace or a converted file change, so that older
# entries are not taken for current.
CACHE_VERSION = 1
SMALL_MODEL = 10_000_000  # parameters


@dataclass
class Log:
    """What a run used and made; all variants of a run write into one log.

    Attributes:
        timings: stage → seconds.
        peaks: stage → the process's peak memory after it, in bytes, if the stage raised it.
        files: leg → what its file is made of.
        runtime: the runtime of the last file.
    """

    timings: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    files: dict[str, FileFacts] = field(default_factory=dict)
    runtime: str = ""


@dataclass
class _Loaded:
    """A value that is made on first use and can be released."""

    value: Any = None


@dataclass(frozen=True, eq=False)
class Run:
    """One check: a port with a checkpoint and a case, and where its results are cached.

    Attributes:
        streamed: whether the weights and the traces stay on the disk (see
            ``edgeverify.backends.streaming``).
        memory: why they are streamed, or why not.
        memory_budget: bytes that the process may take; what the machine has if None.
        log: what was used and made so far.
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
        """The run of another case, with the same weights and a model of its own."""
        return replace(self, case=case, _model=_Loaded())

    def of_checkpoint(self, checkpoint: Checkpoint) -> Run:
        """The run of another checkpoint, with weights, model and files of its own."""
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
        """Returns the trace; a streamed run moves it to the disk."""
        return trace.spilled(self.scratch) if self.streamed else trace

    def model(self) -> nn.Module:
        """The loaded re-authored model.

        Raises:
            PortError: the weights do not fit it, one to one.
        """
        if self._model.value is None:
            self._model.value = _build_reauthored(self)
        return self._model.value

    def reload(self) -> None:
        """Loads the weights again; a model that is already built keeps its own."""
        self._state.value = None
        self.state()

    def release(self) -> None:
        """Releases the weights and the model, because the runtime's own copies need the memory."""
        self._state.value = self._model.value = None
        gc.collect()

    def expected(self, oracle: Trace) -> tuple[str, ...]:
        """The ``step/tap`` keys that every candidate must have, in forward order.

        The number of blocks is the reference's: a port with fewer blocks must still produce all
        taps.
        """
        blocks = sum(key.startswith(f"{self.case.steps[0].name}/kv.") for key in oracle) // 2
        keys = []
        for step in self.case.steps:
            logits = step.is_decode or self.case.prefill_logits
            keys += [f"{step.name}/{tap}" for tap in taps.standard_taps(blocks, logits=logits)]
        return tuple(keys)

    @contextmanager
    def timed(self, name: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Reports a stage to ``progress`` and adds its seconds to the log's ``timings``.

        If the process takes more memory than ever before, ``peaks`` records the new peak, in bytes.
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
    """Whether the model has so many parameters that a second core helps."""
    return sum(tensor.numel() for tensor in run.state().values()) >= SMALL_MODEL


@contextmanager
def fitting_threads(run: Run) -> Iterator[None]:
    """Runs a small model on one thread.

    Its operations take microseconds, and waiting for a second thread takes longer than they do: on
    a busy machine, a tiny Gemma 2 is 10 times faster on one thread than on two.
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
        # The port has written into the tensors that it received. The model keeps what it made of
        # them, but the reference and the audits need the checkpoint's own values.
        run.reload()
    return model


def tokenizer_of(checkpoint: Checkpoint, chosen: Selectors) -> RememberedTokenizer | None:
    """Returns the checkpoint's tokenizer, which is loaded when first used; None without one."""
    if checkpoint.tokenizer_dir is None:
        return None
    return RememberedTokenizer(
        checkpoint.tokenizer_dir,
        checkpoint.gguf_file,
        trust_remote_code=chosen.trust_remote_code,
        cache=chosen.cache,
    )


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
    tokenizer = tokenizer_of(opened, chosen)
    require_engine(chosen.runtimes, tokenizer)
    case = inputs.plan_case(resolved, opened, tokenizer, chosen, max_positions)
    run = Run(resolved, opened, case, chosen.cache, verbose, progress or Progress())
    return run, tokenizer
