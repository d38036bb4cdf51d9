"""Measures the ratios that correct ports show, and derives the thresholds from them.

``python -m edgeverify.suites.calibrate`` runs clean checks (registered ports × seeds × prefill
lengths × KV layouts × kernels) and writes two files of the package: ``calibration.json``, one row
per run with its largest ratios, and ``thresholds.json``, which ``compare`` reads. So the numbers
that decide a verdict are always beside the runs that chose them.

A threshold is the largest clean ratio, times ``MARGIN``, and never below ``FLOOR``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeverify.core import compare
from edgeverify.core.case import KERNELS, KV_LAYOUTS
from edgeverify.core.compare import MIN_ROWS_FOR_RMS
from edgeverify.core.leg import QUANTIZATION, Leg
from edgeverify.core.results import PASS, LegResult
from edgeverify.core.store.entries import environment
from edgeverify.litert.recipes import NAMED
from edgeverify.report.tables import piped
from edgeverify_models import CATALOGUE

CALIBRATION = Path(__file__).with_name("calibration.json")
THRESHOLDS = Path(compare.__file__).with_name("thresholds.json")
# A clean run just past the largest ratio so far must not fail: the maximum over twice as many runs
# grows by a few per cent.
MARGIN = 1.15
FLOOR = {"rms": 1.5, "row": 4.0}
# LiteRT-LM is compared only with the interpreter's logits: see edgeverify/legs/runtime/engine/.
RUNTIMES = ("compiled_model", "tf_lite")
# The tiny widths are not multiples of 128. For weights in blocks, the reference kernels return
# wrong numbers without an error (tests/legs/quantization/test_damage.py).
RECIPES = tuple(name for name in NAMED if name != "dynamic_int4_block128")
FOR_RECIPES = ("xnnpack", "builtin")
LENGTHS = ((16, 32), (8, 24), (5, 48))


@dataclass(frozen=True)
class CleanRun:
    """The largest ratios of one leg of one clean run.

    Attributes:
        model, leg, seed, token_seed, prefill, kv_layout, kernel: what was run.
        outcome: under the thresholds in force at that time.
        rms: largest rms ratio of a tap with at least ``MIN_ROWS_FOR_RMS`` rows.
        rms_tap: the tap of ``rms``.
        row: largest ratio of a single row.
        row_tap: the tap of ``row``.
        isolated_rms, isolated_row: the same, with the oracle's input fed into each block.
        taps: how many taps were compared.
    """

    model: str
    leg: str
    seed: int
    token_seed: int
    prefill: tuple[int, ...]
    kv_layout: str
    kernel: str
    outcome: str
    rms: float
    rms_tap: str
    row: float
    row_tap: str
    isolated_rms: float
    isolated_row: float
    taps: int


def summarise(leg: LegResult, rows_of: dict[str, int], **facts: Any) -> CleanRun:
    """Reduces a leg to its largest ratios.

    Args:
        leg: a judged leg.
        rows_of: step → its number of token rows.
        facts: the fields that say what was run.
    """
    measured = [tap for tap in leg.taps if tap.error_ratio is not None]
    many = [tap for tap in measured if rows_of[tap.tap.split("/")[0]] >= MIN_ROWS_FOR_RMS]
    by_rms = max(many, key=lambda tap: tap.error_ratio or 0.0)
    by_row = max(measured, key=lambda tap: tap.row_ratio or 0.0)
    return CleanRun(
        leg=leg.name,
        outcome=leg.outcome,
        rms=round(by_rms.error_ratio or 0.0, 4),
        rms_tap=by_rms.tap,
        row=round(by_row.row_ratio or 0.0, 4),
        row_tap=by_row.tap,
        isolated_rms=round(max((tap.isolated_ratio or 0.0 for tap in many), default=0.0), 4),
        isolated_row=round(max(tap.isolated_row_ratio or 0.0 for tap in measured), 4),
        taps=len(measured),
        **facts,
    )


def plan(seeds: int, models: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the runs of a calibration.

    Authoring varies weights, lengths and layouts; conversion varies tokens and kernels.

    Converting takes most of the time. So one file per model and layout serves most of its
    conversion runs, which differ by their tokens and kernels. Other weights and other lengths are
    converted once each.
    """
    for model in models:
        for seed, prefill in enumerate(LENGTHS[1:], start=1):
            for kernel in KERNELS:
                yield {
                    "port": model,
                    "seed": seed,
                    "token_seed": seed,
                    "prefill": prefill,
                    "kv_layout": KV_LAYOUTS[0],
                    "kernel": kernel,
                }
        for layout in KV_LAYOUTS:
            for seed in range(seeds):
                yield {
                    "port": model,
                    "seed": seed,
                    "token_seed": seed,
                    "prefill": LENGTHS[seed % len(LENGTHS)],
                    "kv_layout": layout,
                    "backends": ("reference", "reauthored"),
                }
            for kernel in KERNELS:
                for token_seed in range(max(1, seeds // 2)):
                    yield {
                        "port": model,
                        "seed": 0,
                        "token_seed": token_seed,
                        "prefill": LENGTHS[0],
                        "kv_layout": layout,
                        "kernel": kernel,
                        "runtimes": RUNTIMES,
                        **_recipes(kernel, token_seed),
                    }


def _recipes(kernel: str, token_seed: int) -> dict[str, Any]:
    """Adds quantized files on half of the prompts: each has four recipes."""
    return {"recipes": RECIPES} if kernel in FOR_RECIPES and token_seed % 2 == 0 else {}


def run(plans: Iterable[dict[str, Any]]) -> Iterator[CleanRun]:
    """Runs each plan and yields one row per leg."""
    from edgeverify.suites.check import verify

    counted = set()
    for selectors in plans:
        report = verify(**selectors)
        rows_of = {step["name"]: step["tokens"] for step in report.case["steps"]}
        for leg in report.legs.values():
            facts = {
                "model": selectors["port"],
                "seed": selectors["seed"],
                "token_seed": selectors["token_seed"],
                "prefill": tuple(selectors["prefill"]),
                "kv_layout": selectors["kv_layout"],
                # The kernel does not affect the other leg.
                "kernel": selectors.get("kernel", "") if leg.name != "authoring" else "",
            }
            run_key = (leg.name, *facts.values())
            if run_key not in counted:
                counted.add(run_key)
                yield summarise(leg, rows_of, **facts)


def derive(runs: Sequence[CleanRun]) -> dict[str, dict[str, float]]:
    """Returns the thresholds of each leg, and of the block-by-block runs of all legs."""

    def limits(rms: Iterable[float], row: Iterable[float]) -> dict[str, float]:
        return {
            "rms": max(FLOOR["rms"], round(max(rms) * MARGIN, 2)),
            "row": max(FLOOR["row"], round(max(row) * MARGIN, 2)),
        }

    kinds: dict[str, list[CleanRun]] = {}
    for run in runs:
        # ``runtime:tf_lite`` and its siblings share their limits.
        kinds.setdefault(Leg.of(run.leg).kind, []).append(run)
    derived = {
        kind: limits([r.rms for r in of_kind], [r.row for r in of_kind])
        for kind, of_kind in kinds.items()
    }
    derived["isolated"] = limits([r.isolated_rms for r in runs], [r.isolated_row for r in runs])
    return derived


def load_runs(path: Path = CALIBRATION) -> list[CleanRun]:
    """Reads the runs of a calibration on disk."""
    rows = json.loads(path.read_text())["runs"]
    return [CleanRun(**{**row, "prefill": tuple(row["prefill"])}) for row in rows]


def table(runs: Sequence[CleanRun]) -> str:
    """The table of docs/measurements.md: each port's largest ratios over its clean runs."""

    heads = ("authoring: rms / row", "block by block", "conversion: rms / row", "block by block")
    rows: list[tuple[str, ...]] = [("port", "runs", *heads)]
    for model in dict.fromkeys(run.model for run in runs):
        legs = [
            [r for r in runs if r.model == model and r.leg == leg]
            for leg in ("authoring", "conversion")
        ]
        of_model = [run for leg in legs for run in leg]
        cells = [cell for leg in legs for cell in _largest(leg)]
        rows.append((f"`{model}`", str(len(of_model)), *cells))
    return "\n".join(piped(rows))


def quantization_table(runs: Sequence[CleanRun]) -> str:
    """The largest ratios of each recipe and kernel over all ports (Markdown)."""
    rows = [("recipe", "kernel", "runs", "whole: rms / row", "block by block: rms / row")]
    found: dict[tuple[str, str], list[CleanRun]] = {}
    for run in runs:
        leg = Leg.of(run.leg)
        if leg.kind == QUANTIZATION:
            found.setdefault((leg.recipe, run.kernel), []).append(run)
    for (recipe, kernel), some in sorted(found.items()):
        rows.append((f"`{recipe}`", kernel, str(len(some)), *_largest(some)))
    return "\n".join(piped(rows))


def _largest(runs: Sequence[CleanRun]) -> tuple[str, str]:
    """The largest ratios, rms and row, of the run as a whole and of the one block by block."""
    whole = f"{max(r.rms for r in runs):.2f} / {max(r.row for r in runs):.2f}"
    alone = f"{max(r.isolated_rms for r in runs):.2f} / {max(r.isolated_row for r in runs):.2f}"
    return whole, alone


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the calibration and writes its two files; see the options."""
    parser = argparse.ArgumentParser(
        prog="python -m edgeverify.suites.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=8, help="seeds per port and layout")
    parser.add_argument(
        "--model",
        action="append",
        choices=sorted(CATALOGUE),
        help="calibrate these again and keep the runs of the others (default: all)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="directory of the two files (default: their places in the package)",
    )
    parser.add_argument(
        "--widen",
        action="store_true",
        help="derive thresholds from runs that fail, too: only once their cause is known",
    )
    parser.add_argument(
        "--table", action="store_true", help="print the tables of the calibration on disk, and end"
    )
    options = parser.parse_args(argv)
    calibration, known = _files(options.output)
    if options.table:
        runs = load_runs(calibration)
        print(f"{table(runs)}\n\n{quantization_table(runs)}")
        return 0
    chosen = options.model or list(CATALOGUE)
    kept = load_runs(calibration) if options.model and calibration.exists() else []
    rows = [row for row in kept if row.model not in chosen]
    for row in run(plan(options.seeds, chosen)):
        rows.append(row)
        print(
            f"{len(rows):4d} {row.model:9} {row.leg:10} {row.kv_layout:10} {row.kernel:9} "
            f"rms {row.rms:.2f} row {row.row:.2f} isolated {row.isolated_rms:.2f} "
            f"{row.isolated_row:.2f} {row.outcome}",
            flush=True,
        )
    rows.sort(key=lambda row: list(CATALOGUE).index(row.model))
    failed = [row for row in rows if row.outcome != PASS]
    if failed and not options.widen:
        print(f"{len(failed)} of {len(rows)} clean runs fail: find out why. Nothing was written.")
        return 1
    limits = derive(rows)
    document = {
        "command": f"python -m edgeverify.suites.calibrate --seeds {options.seeds}",
        "environment": environment(),
        "thresholds": limits,
        "runs": [asdict(row) for row in rows],
    }
    calibration.parent.mkdir(parents=True, exist_ok=True)
    calibration.write_text(_one_run_a_line(document))
    # The limits of the invariants come from other runs: see
    # edgeverify/suites/invariants/__main__.py.
    others = {k: v for k, v in _known_thresholds(known).items() if k not in limits}
    text = json.dumps({**limits, **others}, indent=2)
    known.write_text(text + "\n")
    print(f"{len(rows)} clean runs, {len(failed)} above their thresholds; wrote {calibration}")
    return 0


def _files(folder: Path | None) -> tuple[Path, Path]:
    """Returns where the calibration and the thresholds that follow from it are written."""
    if folder is None:
        return CALIBRATION, THRESHOLDS
    return folder / CALIBRATION.name, folder / THRESHOLDS.name


def _known_thresholds(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _one_run_a_line(document: dict[str, Any]) -> str:
    """Formats JSON so that a new calibration reads as a diff."""
    runs = ",\n    ".join(json.dumps(run) for run in document["runs"])
    text = json.dumps({**document, "runs": ["RUNS"]}, indent=2)
    return text.replace('"RUNS"', runs) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
