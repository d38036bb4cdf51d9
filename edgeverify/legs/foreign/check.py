"""Verifies a file that edgeverify did not convert against the Hugging Face reference.

A contained child opens, reads and runs the file. This process runs the reference and compares. It
reads the file's constants only after the child has read the same tables without harm.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeverify.audits.file_reading import Subject
from edgeverify.audits.of_hf_config import declared
from edgeverify.core.edges import Edge
from edgeverify.core.errors import ArtifactError, UsageError
from edgeverify.core.judge import Baseline, judge_leg, judge_surely
from edgeverify.core.leg import CONVERSION, QUANTIZATION, Leg
from edgeverify.core.localise import named_alone
from edgeverify.core.progress import Progress
from edgeverify.core.results import (
    BUNDLE,
    EDGES,
    FAIL,
    UNCHECKED,
    AuditResult,
    LegResult,
    Report,
)
from edgeverify.core.store import entries
from edgeverify.core.trace import Trace
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.hf.forward import forward_of
from edgeverify.legs import inputs
from edgeverify.legs.baselines import reference_baselines
from edgeverify.legs.edges import EdgeWalk
from edgeverify.legs.findings import report_of
from edgeverify.legs.foreign import tasks
from edgeverify.legs.foreign.audits import audit
from edgeverify.legs.foreign.case import FileCase, case_of, wanted_tokens
from edgeverify.legs.foreign.container import container_audit
from edgeverify.legs.foreign.ports import port_for
from edgeverify.legs.ports import load_port
from edgeverify.legs.quantization.leg import judge_file
from edgeverify.legs.quantization.weights import read_weights
from edgeverify.legs.run import Run, fitting_threads, tokenizer_of
from edgeverify.legs.runtime.stages import without_taps
from edgeverify.legs.selectors import Selectors
from edgeverify.legs.settle import settled
from edgeverify.litert import contained
from edgeverify.litert.bundle.reader import is_bundle
from edgeverify.litert.interface import SHAPES, Facts
from edgeverify.litert.recipes import ALL, FLOAT32, Recipe, expand, load_recipe
from edgeverify_models.port import Port

TASKS = "edgeverify.legs.foreign.tasks"
# Time limit of one call of the child that runs the file. SmolLM2-135M (541 MB, 11 steps, run as a
# whole and block by block) takes 26 s on two busy cores.
SECONDS = 600.0
_PREFIX = ".checking."
_ABANDONED = 24 * 3600  # seconds; no check takes a day


@dataclass(frozen=True)
class _File:
    """The file under check.

    Attributes:
        named: the path as the user gave it.
        path: the .tflite.
        container: what a .litertlm says about it; None for a .tflite.
        facts: what the file is.
        weights: dtype → totals.
        child: the process that opens the file.
        folder: for traces.
        seconds: time limit of one call.
    """

    named: Path
    path: Path
    container: Mapping[str, Any] | None
    facts: Facts
    weights: Mapping[str, Any]
    child: contained.Child
    folder: Path
    seconds: float

    def ask(self, task: str, **arguments: Any) -> Any:
        """Has the child run a task of ``foreign.tasks`` on the file."""
        told = {"facts": self.facts.to_dict(), "folder": self.folder, **arguments}
        name = f"{TASKS}:{task}"
        return self.child.call(name, self.path, shown=self.named, seconds=self.seconds, **told)


def verify_artifact(
    path: str | Path,
    *,
    checkpoint: str | Path,
    port: Port | str | None = None,
    recipe: str | None = None,
    seconds: float = SECONDS,
    verbose: bool = False,
    progress: Progress | None = None,
    **selectors: Any,
) -> Report:
    """Says whether a .tflite or .litertlm is the Hugging Face model of a checkpoint.

    Prefill lengths, KV layout, cache length and masks are the file's own. What cannot be known or
    run is ``unchecked``, with the reason.

    Args:
        path: the file.
        checkpoint: a directory, file or hub id of the reference's weights.
        port: as in ``verify``; found by the checkpoint's ``model_type`` if left out.
        recipe: the recipe that quantized the file; the file's layers are compared with what the
            recipe promises.
        seconds: time limit after which the child that runs the file is ended.
        verbose: let the libraries write to the terminal.
        progress: receives each stage.
        selectors: of ``edgeverify.legs.selectors.Selectors``: ``size``, ``kernel``,
            ``decode_steps``, ``seed``, ``prompt``, ``trust_remote_code``, ``cache``.

    Returns:
        The report, with the leg ``conversion`` for a float file or ``quantization`` for any other.

    Raises:
        EdgeVerifyError: bad usage or bad input, a file that is not a language model of a known
            form, or one that crashes or hangs the child.
    """
    chosen = Selectors.of(checkpoint=str(checkpoint), **selectors)
    promised = _promised(recipe) if recipe else None
    told = progress or Progress()
    with _opened(Path(path), chosen, seconds, told) as file:
        found = port_for(str(checkpoint)) if port is None else port
        resolved = load_port(found) if isinstance(found, str) else found
        run, tokenizer = _prepare(resolved, chosen, file, verbose=verbose, progress=told)
        with fitting_threads(run):
            run, legs, audits, traces = _judge(run, file, promised)
            audits = settled(audits, legs, run.case)
            if file.container is not None:
                audits = {
                    **audits,
                    BUNDLE: container_audit(run, tokenizer, file.container, file.folder),
                }
            report = report_of(run, legs, audits, tokenizer, traces)
    of_port = f"--model {shlex.quote(port)} " if isinstance(port, str) else ""
    by_recipe = f"--recipe {shlex.quote(recipe)} " if recipe else ""
    named = f"{shlex.quote(str(path))} {of_port}{by_recipe}"
    command = f"edgeverify check-artifact {named}{chosen.options()}"
    return replace(report, case={**_described(report.case, file), "command": command})


def _promised(recipe: str) -> Recipe:
    if recipe == ALL:
        raise UsageError(
            "one file is made by one recipe",
            where=f"--recipe {ALL}",
            expected="the recipe that the file was made by",
            fix="leave it out if it is not known",
        )
    return load_recipe(*expand([recipe]))


@contextmanager
def _opened(path: Path, chosen: Selectors, seconds: float, progress: Progress) -> Iterator[_File]:
    root = chosen.cache or entries.cache_root()
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(f"{_PREFIX}*"):
        if time.time() - old.stat().st_mtime > _ABANDONED:  # left by a run that was killed
            shutil.rmtree(old, ignore_errors=True)
    # The folder is beside the cache, where there is room for copies of a model; the file's own
    # folder may belong to somebody else.
    with TemporaryDirectory(dir=root, prefix=_PREFIX) as name, contained.Child() as child:
        folder, container, model = Path(name), None, path
        with progress.stage("read the file"):
            if is_bundle(path):
                model = folder / f"{path.stem}.tflite"
                container = child.call(f"{TASKS}:unpack", path, target=model, seconds=seconds)
            told = child.call(f"{TASKS}:survey", model, shown=path, seconds=seconds)
        facts = Facts.from_dict(told["facts"])
        yield _File(path, model, container, facts, told["weights"], child, folder, seconds)


def _prepare(
    port: Port, chosen: Selectors, file: _File, *, verbose: bool, progress: Progress
) -> tuple[Run, Any | None]:
    """Opens the checkpoint and plans the case that the file can run."""
    opened = open_checkpoint(
        chosen.checkpoint,
        port,
        size=chosen.size,
        trust_remote_code=chosen.trust_remote_code,
        cache_root=chosen.cache,
    )
    tokenizer = tokenizer_of(opened, chosen)
    wanted = wanted_tokens(file.facts)
    prompt, decode = inputs.tokens(opened.hf_config, tokenizer, chosen, wanted)
    case = case_of(
        file.facts,
        prompt,
        decode,
        model=port.name,
        size=opened.size,
        kernel=chosen.kernel,
        greedy=tokenizer is not None,
        window=forward_of(opened.hf_config).window,
    )
    return Run(port, opened, case, chosen.cache, verbose, progress), tokenizer


def _judge(
    run: Run, file: _File, recipe: Recipe | None
) -> tuple[Run, dict[str, LegResult], dict[str, AuditResult], dict[str, Trace]]:
    run, baselines = reference_baselines(run, with_file=True)
    baseline = baselines[CONVERSION]
    case = run.case
    assert isinstance(case, FileCase)
    traces = {"reference": baseline.own}
    is_float = all(dtype == FLOAT32 for dtype in file.weights)
    asked = Leg(CONVERSION if is_float else QUANTIZATION)
    with run.timed("audits"):
        config = run.port.model_config(run.hf_config)
        subject = Subject(run.hf_config, declared(run.hf_config), config, run.state())
        audits = audit(file.path, case, file.facts, subject, recipe)
    try:
        if is_float:
            run.release()
            walk = EdgeWalk(run, {CONVERSION: baseline})
            leg, traces["tflite"] = _conversion(run, file, baseline, walk)
            audits[EDGES] = walk.audit
        else:
            leg, traces["tflite"] = _quantization(run, file, config, baseline)
    except ArtifactError as error:
        # A file that is known to be another model may be one that cannot be run like this one; for
        # example, its vocabulary may be smaller. That must not discard what is already known.
        if all(audit_.outcome != FAIL for audit_ in audits.values()):
            raise
        leg = without_taps(asked, UNCHECKED, str(error))
    return run, {str(asked): leg}, audits, traces


def _conversion(
    run: Run, file: _File, baseline: Baseline, walk: EdgeWalk
) -> tuple[LegResult, Trace]:
    """Has the child run a float file and walk its edges, and judges its traces."""
    whole, isolated = _run(run, file, baseline.oracle, walk.of_file)
    starts = run.case.starts
    expected = run.expected(baseline.oracle)
    leg, baseline = judge_surely(
        lambda against: judge_leg(Leg(CONVERSION), whole, isolated, against, expected, starts),
        baseline,
    )
    walk.file(leg, _load(file, tasks.EDGES))
    if isolated is not None and leg.first_divergence is not None:
        with run.timed("sublayer by sublayer"):
            file.ask("run_every_tap", case=asdict(run.case))
        leg = _named(leg, _load(file, tasks.EVERY_TAP), baseline, expected, starts)
    return leg, whole


def _quantization(
    run: Run, file: _File, config: Any, baseline: Baseline
) -> tuple[LegResult, Trace]:
    """Has the child run a quantized file, and judges it with the file's own weights.

    The audit answers whether those weights are the checkpoint's.

    Raises:
        ArtifactError: it cannot be determined what the file computes with.
    """
    if file.facts.layout_from == SHAPES:
        raise ArtifactError(
            "it is quantized, and its weights cannot be told apart",
            where=file.named,
            expected="a KV cache that is written in a known way, which tells the blocks",
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in run.state().items()}
    weights = read_weights(file.path, run.hf_config, config, shapes)
    judged = judge_file(
        run,
        file.path,
        weights,
        Leg(QUANTIZATION),
        baseline,
        lambda with_weights, _, oracle: _run(with_weights, file, oracle),
    )
    return judged.leg, judged.trace


def _run(
    run: Run, file: _File, oracle: Trace, edges: Sequence[Edge] = ()
) -> tuple[Trace, Trace | None]:
    """The child's traces of the file: as a whole and, if its taps are known, block by block."""
    oracle.save(file.folder / tasks.ORACLE)
    with run.timed("run the file"):
        steps = [asdict(edge) for edge in edges]
        written = file.ask("run", case=asdict(run.case), edges=steps)
    whole = _load(file, tasks.WHOLE)
    return whole, _load(file, tasks.ISOLATED) if tasks.ISOLATED in written else None


def _named(
    leg: LegResult,
    fed: Trace,
    baseline: Baseline,
    expected: tuple[str, ...],
    starts: Mapping[str, int],
) -> LegResult:
    """The leg with every faulty sublayer named."""
    assert leg.first_divergence is not None
    named = named_alone(leg.first_divergence.isolated, fed, baseline, expected, starts)
    return replace(leg, first_divergence=replace(leg.first_divergence, isolated=named))


def _load(file: _File, name: str) -> Trace:
    trace = Trace.load(file.folder / name)
    trace.provenance["file"] = file.named.name
    return trace


def _described(case: Mapping[str, Any], file: _File) -> dict[str, Any]:
    """The report's case, with a description of the file."""
    own = {"file": str(file.named), "facts": file.facts.to_dict(), "weights": dict(file.weights)}
    if file.container is not None:
        own["container"] = dict(file.container)
    return {**case, **own}
