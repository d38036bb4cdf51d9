"""``python -m edgeverify.suites.golden.limits``: measures how far correct environments differ.

It runs one golden case of each port in environments that differ in instruction set, threads and
kernels, each in its own process. It compares the traces of each pair in units of the floor, as
``compare`` does. The limits are set above the largest measured ratio, and ``limits.json`` stores
both.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgeverify.legs.ports import catalogue

# Name → (environment variables, kernel). ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA choose
# PyTorch's code paths; XNNPACK has no such switch, so the built-in kernels stand in for it.
ENVIRONMENTS: dict[str, tuple[dict[str, str], str]] = {
    "native": ({}, "xnnpack"),
    "avx2": ({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, "xnnpack"),
    "baseline": ({"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}, "builtin"),
    "two threads": ({"EDGEVERIFY_THREADS": "2"}, "xnnpack"),
}
# The limit is this multiple of the largest ratio, since not every processor could be measured.
MARGIN = 1.5


def measure() -> dict[str, Any]:
    """Returns the largest (rms, row) of each pair of environments, over all ports and goldens."""
    largest: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (variables, kernel) in ENVIRONMENTS.items():
            _child(["make", kernel, str(Path(folder) / name)], variables)
        for first, second in itertools.combinations(ENVIRONMENTS, 2):
            told = _child(["compare", str(Path(folder) / first), str(Path(folder) / second)], {})
            largest[f"{first} / {second}"] = json.loads(told.splitlines()[-1])
    return largest


def _child(arguments: list[str], variables: dict[str, str]) -> str:
    # The cache's keys name versions and case, not the instruction set: each run gets its own cache.
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-m", "edgeverify.suites.golden.limits", *arguments],
            env={**os.environ, **variables, "EDGEVERIFY_CACHE": cache},
            check=True,
            capture_output=True,
            text=True,
        )
    return done.stdout


def _make(kernel: str, folder: Path) -> None:
    import torch

    from edgeverify.legs.run import prepare
    from edgeverify.legs.selectors import Selectors
    from edgeverify.suites.golden.run import keep_traces, selectors

    torch.set_num_threads(int(os.environ.get("EDGEVERIFY_THREADS", "1")))
    for model in catalogue():
        chosen = Selectors.of(kernel=kernel)
        run, _ = prepare(model, selectors(chosen), verbose=False, progress=None)
        keep_traces(run, folder / model)


def _compare(first: Path, second: Path) -> list[float]:
    import numpy as np

    from edgeverify.core import noise
    from edgeverify.core.trace import Trace
    from edgeverify.suites.golden.file import rows_of, whole

    worst = [0.0, 0.0]
    for model in catalogue():
        for name in ("reference", "reauthored", "file"):
            before = Trace.load(first / model / f"{name}.safetensors")
            after = Trace.load(second / model / f"{name}.safetensors")
            floor = Trace.load(first / model / f"{name}-floor.safetensors")
            for key, kept in whole(before).items():
                rows, now = rows_of(kept), rows_of(after[key])
                error = np.linalg.norm(now.astype(np.float64) - rows, axis=1)
                scaled = noise.RowErrors(error / np.linalg.norm(rows, axis=1), floor[key])
                if len(error) >= 8:
                    worst[0] = max(worst[0], scaled.error_ratio)
                worst[1] = max(worst[1], float(scaled.ratios(scaled.rms_floor).max()))
    return worst


def main() -> None:
    measured = measure()
    rms = max(pair[0] for pair in measured.values())
    row = max(pair[1] for pair in measured.values())
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    table["other"] = {"rms": round(MARGIN * rms, 1), "row": round(MARGIN * row, 1)}
    table["measured"] = {
        name: {"rms": round(pair[0], 3), "row": round(pair[1], 3)}
        for name, pair in measured.items()
    }
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


TABLE = Path(__file__).with_name("limits.json")
if __name__ == "__main__":
    asked = sys.argv[1:]
    if not asked:
        main()
    elif asked[0] == "make":
        _make(asked[1], Path(asked[2]))
    else:
        print(json.dumps(_compare(Path(asked[1]), Path(asked[2]))))
