"""Runs a golden's case and compares the result with the goldens on disk."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeverify.backends import tflite
from edgeverify.core import taps
from edgeverify.core.errors import GoldenError, RecipeError
from edgeverify.core.judge import Baseline
from edgeverify.core.results import FAIL, PASS, GoldenResult
from edgeverify.core.store import entries
from edgeverify.core.trace import Trace
from edgeverify.legs import fingerprint
from edgeverify.legs.authoring import run_reauthored
from edgeverify.legs.baselines import reference_baselines
from edgeverify.legs.conversion import converted
from edgeverify.legs.run import Run, is_large
from edgeverify.legs.selectors import GOLDENS, Selectors
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.litert.quantize import quantized
from edgeverify.litert.recipes import FLOAT32, NAMED, load_recipe
from edgeverify.suites.golden import blame
from edgeverify.suites.golden.compare import ORACLE, REAUTHORED, Now
from edgeverify.suites.golden.file import SUFFIX, Golden, digest_of, held, load, save
from edgeverify.suites.quality import statistics

REFERENCE, TFLITE = GOLDENS
# One signature filled, another filled, the larger one padded, two decode steps: 25 positions,
# more than the 13 of the tiny Gemma 2's window. The seven ports' goldens then take 0.3 to 0.8 MB.
PREFILL, DECODE_STEPS = (4, 12), 2
DIRECTORY = Path("golden")


def selectors(chosen: Selectors) -> Selectors:
    """Returns the selectors of a golden: the user's, with the golden's own short steps."""
    return replace(chosen, prefill=PREFILL, decode_steps=DECODE_STEPS).checked()


def names(run: Run, chosen: Selectors) -> dict[str, str]:
    """Maps each kind to its file name, e.g. ``gemma2-tiny.tflite.safetensors``."""
    parts = [run.case.model, run.case.size]
    if chosen.checkpoint is not None:
        parts.append(re.sub(r"[^\w.]+", "_", Path(chosen.checkpoint).name))
    elif chosen.seed:
        parts.append(f"seed{chosen.seed}")
    reference = "-".join(parts)
    parts += [run.case.kv_layout] if run.case.kv_layout != "default" else []
    parts += [run.case.kernel] if run.case.kernel != "xnnpack" else []
    file = "-".join(parts)
    return {
        REFERENCE: f"{reference}.{REFERENCE}{SUFFIX}",
        TFLITE: f"{file}.{TFLITE}{SUFFIX}",
    }


def command(model: str, chosen: Selectors, directory: Path) -> str:
    """Returns the command that makes the goldens of a model again."""
    options = {"--size": chosen.size, "--checkpoint": chosen.checkpoint}
    if chosen.seed:
        options["--seed"] = str(chosen.seed)
    if chosen.kv_layout != "default":
        options["--kv-layout"] = chosen.kv_layout
    if chosen.kernel != "xnnpack":
        options["--kernel"] = chosen.kernel
    told = "".join(f" {name} {value}" for name, value in options.items() if value)
    return f"edgeverify golden {model}{told} --golden-dir {directory} --update-golden"


def check(
    run: Run,
    model: str,
    chosen: Selectors,
    directory: Path,
    *,
    update: bool = False,
    kinds: Sequence[str] = GOLDENS,
) -> tuple[GoldenResult, ...]:
    """Compares a model with its goldens.

    A missing golden is written, and the result is a fail; so it is when a golden is rewritten.

    Args:
        run: prepared with ``selectors(chosen)``.
        model: as the user named it, for messages.
        chosen: the user's own selectors.
        directory: the folder of the goldens.
        update: overwrite them with today's numbers.
        kinds: which goldens to compare; the others are not touched.
    """
    again = command(model, chosen, directory)
    # A golden must not name a folder of the machine that it was made on.
    kept = command(run.case.model, replace(chosen, checkpoint=_name_of(chosen)), DIRECTORY)
    inputs = entries.digest([asdict(step) for step in run.case.steps])
    run, baselines = reference_baselines(run, with_file=TFLITE in kinds)
    now = {}
    if REFERENCE in kinds:
        now[REFERENCE] = _reference_now(run, baselines["authoring"], inputs)
    if TFLITE in kinds:
        now[TFLITE] = _file_now(run, baselines, inputs)
    files = names(run, chosen)
    return tuple(
        _one(directory / files[kind], now[kind], again, kept, update=update) for kind in now
    )


def _name_of(chosen: Selectors) -> str | None:
    return None if chosen.checkpoint is None else Path(chosen.checkpoint).name


def _one(path: Path, now: Now, again: str, kept_command: str, *, update: bool) -> GoldenResult:
    made = _golden(now, kept_command)
    if not path.exists():
        save(made, path)
        told = (
            "there was no such golden: it has been written from this run",
            f"look at it, add {path} to version control, and run again",
        )
        return GoldenResult(path.name, FAIL, (), told)
    try:
        kept = load(path, again)
    except GoldenError as error:
        if not update:
            return GoldenResult(path.name, FAIL, (), (str(error),))
        save(made, path)
        told = (f"rewritten; what was there {error.what}", "look at it, and run again")
        return GoldenResult(path.name, FAIL, (), told)
    if not update:
        return blame.judge(path.name, kept, now, again)
    if digest_of(kept) == digest_of(made):
        return GoldenResult(path.name, PASS, (), ("nothing has changed: left as it is",))
    result = blame.rewritten(path.name, kept, now)
    save(made, path)
    return result


def _golden(now: Now, again: str) -> Golden:
    arrays = held(now.traces, condense=now.facts["condensed"])
    return Golden(arrays, now.facts, now.environment, again)


def _givens(run: Run, inputs: str) -> dict[str, Any]:
    sha = hashlib.sha256()
    for name, tensor in run.state().items():
        sha.update(f"{name} {tuple(tensor.shape)}".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return {
        "config": entries.digest(dict(run.hf_config)),
        "weights": sha.hexdigest(),
        "inputs": inputs,
        "condensed": is_large(run),
    }


def _environment(run: Run, *, kernel: str | None = None) -> dict[str, Any]:
    """Returns the versions, and what decides in which order sums are taken."""
    return entries.environment(
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        **({} if kernel is None else {"kernel": kernel}),
    )


def _reference_now(run: Run, baseline: Baseline, inputs: str) -> Now:
    traces = {"": baseline.own, ORACLE: baseline.oracle}
    floors = {"": baseline.floor, ORACLE: baseline.floor}
    return Now(_givens(run, inputs), _environment(run), traces, floors)


def _file_now(run: Run, baselines: Mapping[str, Baseline], inputs: str) -> Now:
    givens, environment = _givens(run, inputs), _environment(run, kernel=run.case.kernel)
    code = fingerprint.of_module(run.model())
    reauthored, _ = run_reauthored(run, None)
    path = converted(run)
    facts = {**givens, "code": code, **_file_facts(path, run.cache)}
    files = {name: _recipe_file(path, name, run.cache) for name in NAMED if name != FLOAT32}
    facts["recipes"] = {
        name: {"unchecked": made} if isinstance(made, str) else _file_facts(made, run.cache)
        for name, made in files.items()
    }
    if facts["condensed"]:  # seeded weights have no quality to lose
        applied = {name: made for name, made in files.items() if isinstance(made, Path)}
        facts["quality"] = _quality(run, baselines["conversion"].oracle, applied)
    with run.timed("run .tflite"):
        trace, _ = tflite.run_file(path, run.case, setup=tflite.Setup(cache=run.cache))
    traces = {"": trace, REAUTHORED: reauthored}
    floors = {"": baselines["conversion"].floor, REAUTHORED: baselines["authoring"].floor}
    return Now(facts, environment, traces, floors)


def _file_facts(path: Path, cache: Path | None) -> dict[str, Any]:
    file = ModelFile(path)
    return {
        "file": entries.file_digest(path, root=cache),
        "bytes": path.stat().st_size,
        "ops": {n: dict(Counter(op.name for op in file.graph(n).ops)) for n in file.signatures},
    }


def _recipe_file(path: Path, name: str, cache: Path | None) -> Path | str:
    """Returns the quantized file, or the reason why there is none."""
    try:
        return quantized(path, load_recipe(name), cache=cache)
    except RecipeError as error:
        return error.what


def _quality(run: Run, oracle: Trace, files: Mapping[str, Path]) -> dict[str, Any]:
    """Maps a recipe to its mean KL(oracle ‖ file), in nats, its standard error, and top-1."""
    keys = [key for key in oracle if taps.split(key)[1] == taps.LOGITS]
    truth = np.concatenate([oracle[key][0] for key in keys])
    figures = {}
    for name, path in files.items():
        with run.timed("run quantized files"):
            trace = tflite.run(path, run.case)
        given = np.concatenate([trace[key][0] for key in keys])
        found = statistics.compare(truth, given, truth.argmax(1))
        figures[name] = {
            "mean_kl": float(found.kl.mean()),
            "se": float(found.kl.std(ddof=1) / found.count**0.5),
            "top1": float(found.top1.mean()),
        }
    return figures


def keep_traces(run: Run, folder: Path) -> None:
    """Writes the traces and floors behind the goldens, to compare them in another process."""
    inputs = entries.digest([asdict(step) for step in run.case.steps])
    run, baselines = reference_baselines(run, with_file=True)
    file = _file_now(run, baselines, inputs)
    for name, trace, floor in (
        ("reference", baselines["authoring"].own, baselines["authoring"].floor),
        ("reauthored", file.traces[REAUTHORED], file.floors[REAUTHORED]),
        ("file", file.traces[""], file.floors[""]),
    ):
        trace.save(folder / f"{name}.safetensors")
        Trace(dict(floor)).save(folder / f"{name}-floor.safetensors")
