"""Tests every invariant on every registered port and records the results.

``python -m edgeverify.suites.invariants`` writes ``measured.json`` beside this file, one row per
port, implementation and invariant with the number of cases and the largest ratios to the floor.
With ``--table docs/invariants-table.md``, it also writes the table of the documentation. A test
compares the thresholds called ``invariants`` with these rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeverify.core.results import NOT_APPLICABLE, PASS, InvariantResult
from edgeverify.legs.selectors import PROFILES
from edgeverify.report.tables import piped
from edgeverify.suites.invariants import INVARIANTS
from edgeverify.suites.invariants.examination import examination
from edgeverify_models import CATALOGUE

MEASURED = Path(__file__).with_name("measured.json")


def measure(model: str, profile: str, seed: int) -> list[dict[str, Any]]:
    """Returns the results of all invariants of one port at its default size, as plain rows."""
    from edgeverify.legs.selectors import Selectors

    examined = examination(model, Selectors.of(profile=profile, seed=seed))
    return [row(model, profile, seed, result) for result in examined.all()]


def row(model: str, profile: str, seed: int, result: InvariantResult) -> dict[str, Any]:
    """Returns the recorded fields of a result."""
    ratios = {"rms": result.rms_ratio, "row": result.row_ratio}
    return {
        "model": model,
        "implementation": result.implementation,
        "invariant": result.invariant,
        "outcome": result.outcome,
        "profile": profile,
        "seed": seed,
        "cases": result.examples,
        **{name: None if value is None else round(value, 3) for name, value in ratios.items()},
        **({} if result.outcome == PASS else {"reason": result.reason}),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns invariant × port as Markdown; each cell has the cases per implementation."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    implementations = list(dict.fromkeys(row["implementation"] for row in rows))
    cells = {(r["invariant"], r["model"], r["implementation"]): r for r in rows}
    lines = [
        f"Cases per implementation, in this order: {', '.join(implementations)}. A number is cases"
        " that all passed, – says that the contract does not apply there.",
        "",
    ]
    table = [["invariant", *models]]
    for invariant in INVARIANTS:
        told = (
            " / ".join(_cell(cells.get((invariant, model, name))) for name in implementations)
            for model in models
        )
        table.append([invariant, *told])
    worst = (
        " / ".join(f"{_largest(rows, model, ratio):.2f}" for ratio in ("rms", "row"))
        for model in models
    )
    table.append(["*largest ratio: rms / row*", *worst])
    return "\n".join([*lines, *piped(table)]) + "\n"


def _cell(found: dict[str, Any] | None) -> str:
    if found is None or found["outcome"] == NOT_APPLICABLE:
        return "–"
    return str(found["cases"]) if found["outcome"] == PASS else f"**{found['outcome']}**"


def _largest(rows: Sequence[dict[str, Any]], model: str, ratio: str) -> float:
    return max((r[ratio] or 0.0 for r in rows if r["model"] == model), default=0.0)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the chosen ports and writes the files; other ports' rows are kept."""
    parser = argparse.ArgumentParser(
        prog="python -m edgeverify.suites.invariants", description=__doc__
    )
    parser.add_argument("--model", action="append", choices=list(CATALOGUE))
    parser.add_argument("--profile", choices=PROFILES, default="ci")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="write the table, too")
    options = parser.parse_args(argv)
    known = json.loads(MEASURED.read_text()) if MEASURED.exists() else []
    for model in options.model or CATALOGUE:
        rows = measure(model, options.profile, options.seed)
        known = [row for row in known if row["model"] != model] + rows
        odd = [row for row in rows if row["outcome"] not in (PASS, NOT_APPLICABLE)]
        print(model, f"{sum(row['cases'] for row in rows)} cases", *odd, flush=True)
        order = list(CATALOGUE)
        known.sort(key=lambda row: order.index(row["model"]))
        text = ",\n".join(json.dumps(row) for row in known)
        MEASURED.write_text(f"[\n{text}\n]\n")
    if options.table:
        options.table.write_text(table(known))


if __name__ == "__main__":
    main()
