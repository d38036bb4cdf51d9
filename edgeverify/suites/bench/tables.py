"""What was timed, as text."""

from __future__ import annotations

from edgeverify.report.tables import padded
from edgeverify.suites.bench.run import Bench, Row, Spread

HEAD = (
    "recipe",
    "kernel",
    "MB",
    "prefill tok/s",
    "decode tok/s",
    "first token ms",
    "load s",
    "peak MB",
)


def lines(result: Bench) -> list[str]:
    """What the terminal shows."""
    table = [HEAD, *(_cells(row) for row in result.rows)]
    told = [f"{result.subject} · {result.threads} threads", ""]
    told += padded(table, right=range(2, len(HEAD)), indent="  ")
    # Of a recipe that cannot be applied there is a row for each kernel.
    reasons = {f"{row.recipe}: {row.outcome}, {row.reason}": 0 for row in result.rows if row.reason}
    return [*told, "", *(f"  {note}" for note in _notes(result)), *(f"  {r}" for r in reasons)]


def _cells(row: Row) -> tuple[str, ...]:
    if row.sample is None or row.size_bytes is None:
        return (row.recipe, row.kernel, "", row.outcome, "", "", "", "")
    memory = "" if row.sample.memory is None else f"{row.sample.memory / 1e6:.0f}"
    return (
        row.recipe,
        row.kernel,
        f"{row.size_bytes / 1e6:.1f}",
        _spread(row.prefill),
        _spread(row.decode),
        _spread(row.first_token, 1e3),
        _spread(row.load),
        memory,
    )


def _notes(result: Bench) -> list[str]:
    """What the figures are."""
    told = [f"Median [smallest largest] of {result.repeats} repeats, each on a file opened anew."]
    sample = next((row.sample for row in result.rows if row.sample is not None), None)
    if sample is not None:
        signature, steps = sample.prefill_signature, sample.decode_steps
        told.append(
            f"{signature} is timed once a repeat, then {steps} decode steps after it, with the "
            "cache handed in and out as arrays."
        )
    if sample is not None and sample.memory_before is not None:
        told.append(
            "load: opening and the first call of each signature, which is the warm-up. peak MB: "
            f"of a process of its own, {sample.memory_before / 1e6:.0f} before it opened the file."
        )
    return told


def _spread(spread: Spread | None, factor: float = 1.0) -> str:
    if spread is None:
        return "–"
    low, middle, high = (factor * v for v in (spread.low, spread.median, spread.high))
    return f"{_number(middle)} [{_number(low)} {_number(high)}]"


def _number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
