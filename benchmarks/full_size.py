"""Peak memory and time of the authoring leg at published sizes, weights streamed from the disk.

``python benchmarks/full_size.py [MODEL:SIZE ...]`` runs each in a process of its own, with seeded
weights and a cache that is deleted afterwards (it takes the model's float32 size on the disk), and
prints seconds, peak memory (VmHWM), the bar (0.35 of the float32 size plus 1 GiB) and their ratio.
It exits with 1 if a model is above its bar or does not pass.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = (
    "tinyllama:1.1b",
    "smollm:1.7b",
    "gemma2:2b",
    "gemma1:2b",
    "phi2:2.7b",
    "openelm:3b",
)
# The bar is also the budget that a run is given, so that it must stream.
SHARE, FIXED = 0.35, 2**30


def float32_bytes(model: str, size: str) -> int:
    """What the parameters take, counted on the meta device."""
    from edgeverify import load_port
    from edgeverify.hf import meta_model

    built = meta_model(load_port(model).hf_configs[size])
    return sum(4 * parameter.numel() for parameter in built.parameters())


def measured(model: str, size: str, bar: int, folder: Path) -> tuple[str, float, int]:
    """Outcome, seconds and peak bytes of one check."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "edgeverify.cli", "check", model, "--size", size, "-q"]
    command += ["--backend", "reauthored", "--memory-budget", str(bar), "--json", str(report)]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--cache", str(folder)], check=False, stdout=subprocess.DEVNULL
    )
    seconds = time.perf_counter() - start
    if not report.exists():
        return f"exit status {done.returncode}", seconds, 0
    told = json.loads(report.read_text())
    return told["outcome"], seconds, int(told["environment"]["peak_memory"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL:SIZE")
    status = 0
    print(f"{'model':16} {'float32':>9} {'outcome':>10} {'seconds':>8} {'peak':>9} {'bar':>9}")
    for name in parser.parse_args().models:
        model, _, size = name.partition(":")
        total = float32_bytes(model, size)
        bar = int(SHARE * total) + FIXED
        with tempfile.TemporaryDirectory() as folder:
            outcome, seconds, peak = measured(model, size, bar, Path(folder))
        right = outcome == "pass" and 0 < peak <= bar
        status |= not right
        sizes = [f"{n / 1e9:6.2f} GB" for n in (total, peak, bar)]
        print(
            f"{name:16} {sizes[0]} {outcome:>10} {seconds:8.0f} {sizes[1]} {sizes[2]}  "
            f"{peak / bar:.2f} of the bar",
            flush=True,
        )
    return status


if __name__ == "__main__":
    raise SystemExit(main())
