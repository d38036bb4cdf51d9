"""Measures the peak memory and time of checks at published sizes.

``python benchmarks/full_size.py [MODEL:SIZE ...]`` runs only the authoring leg, with weights
streamed from the disk; the bar is 0.35 of the float32 size plus 1 GiB. With ``--all-legs`` it runs
authoring, conversion and ``dynamic_int8`` in one command; the bar is 20 GiB. In both cases the bar
is also the budget that the check gets.

Each model runs in its own process, with seeded weights and a cache that is deleted afterwards. It
needs the float32 size on the disk, or four times that with ``--all-legs``. Printed are seconds,
peak memory (VmHWM), the bar and their ratio, and each leg's worst error ratio. The exit status is 1
if a model is above its bar or does not pass. Arguments after ``--`` go to ``edgeverify check``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeverify.core.results import Report

MODELS = (
    "tinyllama:1.1b",
    "smollm:1.7b",
    "gemma2:2b",
    "gemma1:2b",
    "phi2:2.7b",
    "openelm:3b",
)
SHARE, FIXED = 0.35, 2**30
ALL_LEGS = 20 * 2**30


def float32_bytes(model: str, size: str) -> int:
    """Returns the bytes of the parameters, counted on the meta device."""
    from edgeverify import load_port
    from edgeverify.hf.config import meta_model

    built = meta_model(load_port(model).hf_configs[size])
    return sum(4 * parameter.numel() for parameter in built.parameters())


@dataclass(frozen=True)
class Measured:
    """One check: its outcome, seconds, peak in bytes, and the results of its legs."""

    outcome: str
    seconds: float
    peak: int = 0
    legs: str = ""


def worst_ratios(report: Report) -> str:
    """Returns each leg's worst error ratio, by name, and the most taps that a leg compares."""
    from edgeverify.report.words import number

    legs = report.legs
    found = [f"{name} {number(leg.worst and leg.worst.error_ratio)}" for name, leg in legs.items()]
    return f"worst {', '.join(found)}; {max(len(leg.taps) for leg in legs.values())} taps"


def measured(model: str, size: str, bar: int, folder: Path, options: Sequence[str]) -> Measured:
    """Checks a model in its own process."""
    from edgeverify.report.read import report_from

    report = folder / "report.json"
    command = [sys.executable, "-m", "edgeverify.cli.main", "check", model, "--size", size, "-q"]
    command += ["--memory-budget", str(bar), "--json", str(report), "--cache", str(folder)]
    start = time.perf_counter()
    done = subprocess.run([*command, *options], check=False, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    if not report.exists():
        return Measured(f"exit status {done.returncode}", seconds)
    told = report_from(json.loads(report.read_text()))
    peak = int(told.environment["peak_memory"])
    return Measured(told.outcome, seconds, peak, worst_ratios(told))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL:SIZE")
    parser.add_argument("--all-legs", action="store_true", help="conversion and dynamic_int8, too")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    chosen, more = parser.parse_args(given[:end]), given[end + 1 :]
    legs = ["--recipe", "dynamic_int8"] if chosen.all_legs else ["--backend", "reauthored"]
    status = 0
    print(f"{'model':16} {'float32':>9} {'outcome':>10} {'seconds':>8} {'peak':>9} {'bar':>9}")
    for name in chosen.models:
        model, _, size = name.partition(":")
        total = float32_bytes(model, size)
        bar = ALL_LEGS if chosen.all_legs else int(SHARE * total) + FIXED
        with tempfile.TemporaryDirectory() as folder:
            run = measured(model, size, bar, Path(folder), [*legs, *more])
        right = run.outcome == "pass" and 0 < run.peak <= bar
        status |= not right
        sizes = [f"{n / 1e9:6.2f} GB" for n in (total, run.peak, bar)]
        print(
            f"{name:16} {sizes[0]} {run.outcome:>10} {run.seconds:8.0f} {sizes[1]} {sizes[2]}  "
            f"{run.peak / bar:.2f} of the bar · {run.legs}",
            flush=True,
        )
    return status


if __name__ == "__main__":
    raise SystemExit(main())
