"""Compares the cost of a check with what any user of these libraries pays, in one run.

``python benchmarks/overhead.py [--repeat N]`` runs whole processes in turn and prints medians
and their ratios:

- *warm*: ``edgeverify check tinyllama`` with everything cached, compared with a process that only
  imports torch, transformers and litert_torch.generative. Bar: 2.
- *cold*: the same with an empty cache, compared with a process that imports them and converts the
  same model to the same signatures, bare. Bar: 1.5.
- *start*: ``edgeverify --help`` and ``edgeverify list``. Bar: 0.5 s.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

EDGEVERIFY = [sys.executable, "-m", "edgeverify.cli.main"]
CHECK = [*EDGEVERIFY, "check", "tinyllama", "-q"]
IMPORTS = [sys.executable, "-c", "import torch, transformers, litert_torch.generative"]
BARE = [sys.executable, __file__, "--bare-conversion"]


def bare_conversion(folder: Path) -> None:
    """Converts as a user would: the tiny TinyLlama, two prefill signatures and decode."""
    import litert_torch
    import torch
    import transformers  # noqa: F401  (a user compares with it; the ratio is about the rest)
    from litert_torch.generative.layers.kv_cache import KVCache
    from litert_torch.generative.utilities.converter import ExportableModule
    from litert_torch.generative.utilities.export_config import ExportConfig

    from edgeverify_models.tiny_llama import TINYLLAMA

    config = TINYLLAMA.model_config(TINYLLAMA.hf_configs["tiny"])
    rows = 96
    model = TINYLLAMA.model_class(config, mask_cache_size=rows)
    exported = ExportableModule(model, export_config=ExportConfig(output_logits_on_prefill=True))
    converter = litert_torch
    for name, length in (("prefill_16", 16), ("prefill_32", 32), ("decode", 1)):
        inputs = {
            "tokens": torch.zeros((1, length), dtype=torch.int32),
            "input_pos": torch.arange(length, dtype=torch.int32),
            "kv_cache": KVCache.from_model_config(rows, config),
        }
        converter = converter.signature(name, exported.eval(), sample_kwargs=inputs)
    converter.convert(lightweight_conversion=True).export(str(folder / "bare.tflite"))


def seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def in_turn(repeat: int, *runs: Callable[[], float]) -> list[float]:
    """Returns medians of the runs, which take turns so that machine drift affects all alike."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeat):
        for taken, run in zip(times, runs, strict=True):
            taken.append(run())
    return [statistics.median(taken) for taken in times]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each process (default: 3)")
    parser.add_argument("--bare-conversion", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.bare_conversion:
            bare_conversion(folder)
            return 0
        warm_cache, cold_cache = folder / "warm", folder / "cold"

        def cold() -> float:
            shutil.rmtree(cold_cache, ignore_errors=True)
            return seconds([*CHECK, "--cache", str(cold_cache)])

        warm_check = [*CHECK, "--cache", str(warm_cache)]
        seconds(warm_check)
        warm, imports = in_turn(
            options.repeat, lambda: seconds(warm_check), lambda: seconds(IMPORTS)
        )
        whole, bare = in_turn(options.repeat, cold, lambda: seconds(BARE))
        shown, listed = in_turn(
            options.repeat,
            lambda: seconds([*EDGEVERIFY, "--help"]),
            lambda: seconds([*EDGEVERIFY, "list"]),
        )
    print(f"warm   {warm:.2f} s / imports {imports:.2f} s = {warm / imports:.2f}")
    print(f"cold   {whole:.2f} s / imports and a bare conversion {bare:.2f} s = {whole / bare:.2f}")
    print(f"start  --help {shown:.2f} s, list {listed:.2f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
