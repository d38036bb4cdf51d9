"""Checks right ports whose weights have outliers, as those of trained models do.

A trained model has a few residual channels, embedding rows or single weights that are hundreds or
thousands of times larger than the others ("massive activations", https://arxiv.org/abs/2402.17762).
``python -m edgeverify.suites.outliers`` runs every registered port with every kind of outlier
(authoring), some also as files, float and int8, and writes one row per leg to ``outliers.json``.
None may fail.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgeverify.core.judge import REDRAWN
from edgeverify.core.results import FAIL, PASS
from edgeverify.core.store.entries import environment
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.hf.roles import Roles
from edgeverify.report.tables import piped
from edgeverify_models import CATALOGUE, load
from edgeverify_models.port import Port

OUTLIERS = Path(__file__).with_name("outliers.json")
SIZES = (30.0, 300.0, 3000.0)
# A random prompt of 48 tokens then has some of the enlarged embedding rows.
EVERY_ROW = 16
RECIPES = ("weight_only_int8", "dynamic_int8")


def _named(roles: Roles, layer: int | None, role: str) -> torch.Tensor:
    tensor = roles.get(layer, role)
    assert tensor is not None, f"no tensor has the role {role}"
    return tensor


def _one_weight(roles: Roles, size: float) -> None:
    _named(roles, 1, "down")[3, 5] = size


def _some_weights(roles: Roles, size: float) -> None:
    _named(roles, 0, "down")[7, :8] = size


def _rows(roles: Roles, size: float) -> None:
    _named(roles, None, "embed")[::EVERY_ROW] *= size


def _channel(roles: Roles, size: float) -> None:
    _named(roles, None, "embed")[:, 9] *= size


def _norm(roles: Roles, size: float) -> None:
    _, weight = list(roles.norm_weights(1))[-1]
    weight[11] = size


def _attention(roles: Roles, size: float) -> None:
    _named(roles, 1, "o")[4, 2] = size


# kind → puts an outlier of a size into a checkpoint's tensors, in place
KINDS: dict[str, Callable[[Roles, float], None]] = {
    "one weight of block 1's down projection": _one_weight,
    "eight weights of block 0's down projection": _some_weights,
    "one weight of block 1's output projection": _attention,
    "every 16th embedding row": _rows,
    "one embedding channel": _channel,
    "one weight of a norm of block 1": _norm,
}


@dataclass(frozen=True)
class OutlierRun:
    """One leg of a right model with an outlier.

    Attributes:
        model, kind, size, seed, leg: what was run.
        outcome: ``pass`` where all is well.
        more_runs: whether it took more float32 runs of the reference to see that.
        rms: the largest rms ratio.
        row: the largest ratio of a row.
        isolated_rms, isolated_row: the same, with the oracle's input fed into each block.
    """

    model: str
    kind: str
    size: float
    seed: int
    leg: str
    outcome: str
    more_runs: bool
    rms: float
    row: float
    isolated_rms: float
    isolated_row: float


def put(port: Port, kind: str, size: float, seed: int, folder: Path) -> Path:
    """Writes a seeded tiny checkpoint with an outlier into a folder, and returns the folder."""
    opened = open_checkpoint(None, port, size="tiny", seed=seed)
    tensors = {name: tensor.clone() for name, tensor in opened.tensors().items()}
    KINDS[kind](Roles(tensors), size)
    (folder / "config.json").write_text(json.dumps(dict(opened.hf_config)))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def run(model: str, kind: str, size: float, seed: int, **selectors: Any) -> Iterator[OutlierRun]:
    """Checks one right model, with an empty cache, and yields one row per leg."""
    from edgeverify.suites.check import verify

    with tempfile.TemporaryDirectory(prefix="edgeverify-") as made:
        folder = Path(made) / "checkpoint"
        folder.mkdir()
        put(load(model), kind, size, seed, folder)
        report = verify(
            model, checkpoint=folder, token_seed=seed, cache=Path(made) / "cache", **selectors
        )
    for leg in report.legs.values():
        yield OutlierRun(
            model=model,
            kind=kind,
            size=size,
            seed=seed,
            leg=leg.name,
            outcome=leg.outcome,
            more_runs=REDRAWN in leg.notes,
            rms=_largest(tap.error_ratio for tap in leg.taps),
            row=_largest(tap.row_ratio for tap in leg.taps),
            isolated_rms=_largest(tap.isolated_ratio for tap in leg.taps),
            isolated_row=_largest(tap.isolated_row_ratio for tap in leg.taps),
        )


def _largest(ratios: Iterator[float | None]) -> float:
    return round(max((ratio for ratio in ratios if ratio is not None), default=0.0), 3)


def plan(seeds: int, models: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the arguments of ``run``: all kinds and sizes on PyTorch, one size as files."""
    for model in models:
        for kind in KINDS:
            for size in SIZES:
                for seed in range(seeds):
                    yield {"model": model, "kind": kind, "size": size, "seed": seed} | {
                        "backends": ("reference", "reauthored")
                    }
            yield {"model": model, "kind": kind, "size": SIZES[1], "seed": seeds} | {
                "recipes": RECIPES
            }


def load_runs(path: Path = OUTLIERS) -> list[OutlierRun]:
    """Reads the rows on disk."""
    return [OutlierRun(**row) for row in json.loads(path.read_text())["runs"]]


def table(runs: Sequence[OutlierRun]) -> str:
    """The table of docs/measurements.md, one row per kind of outlier (Markdown)."""
    rows = [("outlier", "legs", "took more runs", "worst row", "worst row block by block", "fail")]
    for kind in KINDS:
        some = [run for run in runs if run.kind == kind]
        counts = (len(some), sum(r.more_runs for r in some), sum(r.outcome == FAIL for r in some))
        worst = f"{max(r.row for r in some):.2f}", f"{max(r.isolated_row for r in some):.2f}"
        rows.append((kind, str(counts[0]), str(counts[1]), *worst, str(counts[2])))
    return "\n".join(piped(rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all, and writes the rows; see the options."""
    parser = argparse.ArgumentParser(
        prog="python -m edgeverify.suites.outliers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=4, help="seeds per port, kind and size")
    parser.add_argument(
        "--model", action="append", choices=sorted(CATALOGUE), help="only these (default: all)"
    )
    parser.add_argument("--output", type=Path, default=OUTLIERS, help="the file of the rows")
    parser.add_argument("--table", action="store_true", help="print the table of the file, and end")
    options = parser.parse_args(argv)
    if options.table:
        print(table(load_runs(options.output)))
        return 0
    rows: list[OutlierRun] = []
    for chosen in plan(options.seeds, options.model or list(CATALOGUE)):
        for row in run(**chosen):
            rows.append(row)
            more = "more runs" if row.more_runs else ""
            print(
                f"{len(rows):4d} {row.model:9} {row.kind} x{row.size:g} {row.seed} {row.leg} "
                f"{row.rms:.2f} {row.row:.2f} {row.outcome} {more}",
                flush=True,
            )
    failed = [row for row in rows if row.outcome != PASS]
    text = ",\n    ".join(json.dumps(asdict(row)) for row in rows)
    head = json.dumps({"environment": environment(), "runs": ["RUNS"]}, indent=2)
    options.output.write_text(head.replace('"RUNS"', text) + "\n")
    print(f"{len(rows)} legs of right models, {len(failed)} do not pass; wrote {options.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
