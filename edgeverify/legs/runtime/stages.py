"""The stages of the leg ``runtime``: runs a file in every other requested runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeverify.backends import litert_lm
from edgeverify.backends.sessions.tflite import TfliteSession
from edgeverify.core import taps
from edgeverify.core.compare import thresholds
from edgeverify.core.errors import ArtifactError, NoRoomError
from edgeverify.core.judge import Baseline
from edgeverify.core.leg import Leg
from edgeverify.core.results import FAIL, UNCHECKED, Finding, LegResult
from edgeverify.core.store import entries
from edgeverify.core.trace import Trace
from edgeverify.hf.generation_config import generation_config
from edgeverify.legs.run import Run
from edgeverify.legs.runtime import engine
from edgeverify.legs.runtime.leg import RuntimeBaseline, of_interpreter, runtime_leg
from edgeverify.litert.bundle import writer
from edgeverify.litert.bundle.writer import ASKED, LITERT_LM

# The kernels that LiteRT-LM uses on the CPU. Other kernels round activations differently.
ENGINE_KERNEL = "xnnpack"


@dataclass(frozen=True)
class FileRun:
    """A file, of any recipe, after its own leg.

    Attributes:
        path: where it is.
        leg: its own leg: ``conversion``, or that of a recipe.
        trace: the output of the LiteRT interpreter.
        baseline: what its leg was compared with.
        sources: the operators to blame if it failed.
        floating: ``baseline`` without the cost of rounding activations; None if the file rounds
            none.
    """

    path: Path
    leg: LegResult
    trace: Trace
    baseline: Baseline
    sources: tuple[Finding, ...] = ()
    floating: Baseline | None = None


def run_runtimes(
    run: Run, runtimes: Sequence[str], file: FileRun, tokenizer: Any, refusal: str
) -> tuple[dict[str, LegResult], tuple[Finding, ...]]:
    """Runs a file in other runtimes.

    Args:
        run: of the file.
        runtimes: their names.
        file: the file.
        tokenizer: transformers' tokenizer; only LiteRT-LM needs it.
        refusal: why LiteRT-LM would not run the file, by the audit of the signatures, or "". If
            there is a reason, LiteRT-LM is not run.

    Returns:
        Legs by name, and the findings of all.
    """
    legs: dict[str, LegResult] = {}
    findings: tuple[Finding, ...] = ()
    for runtime in runtimes:
        leg = file.leg.leg.in_runtime(runtime)
        more: tuple[Finding, ...] = ()
        if runtime == LITERT_LM and refusal:
            legs[str(leg)] = without_taps(leg, UNCHECKED, f"not asked: {refusal}")
            continue
        try:
            if runtime == LITERT_LM:
                legs[str(leg)], more = _engine_leg(run, file, tokenizer, leg)
            else:
                legs[str(leg)] = _runtime_leg(run, file, leg)
        except NoRoomError as error:
            legs[str(leg)] = without_taps(leg, UNCHECKED, str(error))
        except ArtifactError as error:
            # The interpreter has already run this very file.
            legs[str(leg)] = without_taps(leg, FAIL, error.what)
        findings = (*findings, *more)
    return legs, findings


def without_taps(leg: Leg, outcome: str, reason: str) -> LegResult:
    """A leg without anything to compare."""
    return LegResult(leg, outcome, thresholds(leg.kind).as_dict(), reason=reason)


def _runtime_leg(run: Run, file: FileRun, leg: Leg) -> LegResult:
    right = file.leg.outcome != FAIL
    baseline = file.baseline if right else of_interpreter(file.trace, file.baseline)
    judged = RuntimeBaseline(baseline, run.expected(file.baseline.oracle), run.cache)
    with run.timed(f"run in {leg.runtime}"):
        return runtime_leg(leg, file.path, run.case, file.trace, judged)


def _engine_leg(
    run: Run, file: FileRun, tokenizer: Any, leg: Leg
) -> tuple[LegResult, tuple[Finding, ...]]:
    """Runs the file, bundled with the checkpoint's tokenizer, in LiteRT-LM on the case's prompt."""
    prompt = [token for step in run.case.steps if not step.is_decode for token in step.tokens]
    target = [step.tokens[0] for step in run.case.steps if step.is_decode]
    wanted = engine.wanted_of(tokenizer, _usage(run, tokenizer), prompt, target)
    threads = os.cpu_count() or 1
    with bundler(run, tokenizer, ASKED)(file.path) as bundled, run.timed(f"run in {LITERT_LM}"):
        answers = litert_lm.ask(bundled, wanted.questions(len(target)), num_threads=threads)
    floors = engine.Floors(
        _largest(file, file.floating or file.baseline),
        None if file.floating is None else _largest(file, file.baseline),
    )
    with run.timed(f"run .tflite as {LITERT_LM} does"):
        session = TfliteSession(file.path, run.case, ENGINE_KERNEL, num_threads=threads)
        return engine.engine_leg(answers, wanted, session, floors, len(target), leg)


def _largest(file: FileRun, baseline: Baseline) -> float:
    """How far the logits of two correct runs of a file may be apart, relative, in any row."""
    floor = of_interpreter(file.trace, baseline).floor
    return max(float(floor[key].max()) for key in floor if key.endswith(taps.LOGITS))


def bundler(run: Run, tokenizer: Any, what: str) -> Callable[[Path], AbstractContextManager[Path]]:
    """Returns a function that bundles this run's file, temporarily, into a ``.litertlm``.

    A checkpoint that cannot be bundled is refused here, before anything is converted.

    Args:
        run: gives the case and the checkpoint.
        tokenizer: transformers' tokenizer, or None.
        what: names what needs the bundle, for messages.

    Raises:
        EdgeVerifyError: the extra is not installed, or the checkpoint has no tokenizer that can be
            bundled.
    """
    writer.require("litert_lm_builder", what)
    writer.require_tokenizer(tokenizer, what)
    words, usage = writer.tokenizer_json(tokenizer), _usage(run, tokenizer)

    @contextmanager
    def bundled(path: Path) -> Iterator[Path]:
        with entries.working_folder(path.parent) as folder:
            target = folder / path.with_suffix(".litertlm").name
            with run.timed("bundle"):
                writer.write_litertlm(path, words, usage, target)
            yield target

    return bundled


def _usage(run: Run, tokenizer: Any) -> writer.Usage:
    generation = generation_config(run.checkpoint.tokenizer_dir)
    return writer.usage_of(tokenizer, run.hf_config, run.case.kv_cache_len, generation)
