"""An evaluation as text: on a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from edgeverify.report.tables import padded, piped
from edgeverify.suites.quality.model import MEGABYTE, Evaluation, Row
from edgeverify.suites.quality.statistics import BLOCK, ENOUGH_BLOCKS, Estimate, Figures

HEAD = (
    "recipe",
    "MB",
    "mean KL [95 %]",
    "median",
    "99 %",
    "max",
    "top-1",
    "top-5",
    "perplexity",
    "tok/s",
)
FIGURES = range(1, len(HEAD))  # the columns of numbers
PAIRED_HEAD = ("against the float file", "mean KL [95 %]", "log perplexity [95 %]")
NOTES = (
    "KL(reference ‖ file) of the next token, in nats. top-1: positions with the reference's "
    "likeliest token. top-5: mean share of its five likeliest among the file's five.",
    "Intervals: block bootstrap; the standard error of the perplexity, too. tok/s: prefill. MB: of "
    "a file with the one prefill signature that is scored.",
)


def lines(result: Evaluation) -> list[str]:
    """What the terminal shows."""
    told = [f"{result.outcome.upper()}  {_head(result)}", ""]
    told += padded(_table(result), FIGURES, indent="  ")
    paired = _paired(result.rows)
    if len(paired) > 1:
        told += ["", *padded(paired, FIGURES, indent="  ")]
    told += ["", *(f"  {note}" for note in NOTES)]
    remarks = _remarks(result)
    return [*told, *([""] if remarks else []), *(f"  {remark}" for remark in remarks)]


def markdown(result: Evaluation) -> str:
    """The same as Markdown."""
    parts = [f"**{result.outcome.upper()}** {_head(result)}", "", *piped(_table(result), FIGURES)]
    paired = _paired(result.rows)
    if len(paired) > 1:
        parts += ["", *piped(paired, FIGURES)]
    parts += ["", *NOTES]
    remarks = _remarks(result)
    parts += ["", *(f"- {remark}" for remark in remarks)] if remarks else []
    return "\n".join(parts) + "\n"


def _head(result: Evaluation) -> str:
    model = result.model
    parts = [
        f"{model['name']} {model['size']}",
        str(model["checkpoint"]),
        f"{result.text}: {result.positions} positions in windows of {model['window']}",
        f"{model['kernel']}, {model['threads']} threads",
    ]
    if result.peak_memory is not None:
        parts.append(f"peak memory {result.peak_memory / 2**30:.1f} GiB")
    return " · ".join(parts)


def _table(result: Evaluation) -> list[tuple[str, ...]]:
    own = f"{_number(result.reference.value)} ± {_number(result.reference_se)}"
    reference = ("reference", "", "", "", "", "", "", "", own, "")
    return [HEAD, reference, *(_cells(row) for row in result.rows)]


def _cells(row: Row) -> tuple[str, ...]:
    size = "" if row.size_bytes is None else f"{row.size_bytes / MEGABYTE:.1f}"
    speed = "" if row.tokens_per_second is None else f"{row.tokens_per_second:.0f}"
    found = row.figures
    if found is None:
        return (row.recipe, size, row.outcome, "", "", "", "", "", "", speed)
    return (
        row.recipe,
        size,
        _interval(found.mean_kl),
        _number(found.median_kl.value),
        _number(found.p99_kl.value),
        _number(found.max_kl.value),
        f"{100 * found.top1.value:.1f} %",
        f"{100 * found.top5.value:.1f} %",
        f"{_number(found.perplexity.value)} ± {_number(found.perplexity_se)}",
        speed,
    )


def _paired(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The differences from the float file, which is the first row."""
    found: list[tuple[str, ...]] = [PAIRED_HEAD]
    for row in rows[1:]:
        if isinstance(row.figures, Figures):
            kl, text = row.figures.mean_kl_over_float, row.figures.log_perplexity_over_float
            found.append((row.recipe, _interval(kl, "+"), _interval(text, "+")))
    return found


def _remarks(result: Evaluation) -> list[str]:
    """Each reason and each gate, by recipe."""
    told = []
    for row in result.rows:
        if row.reason:
            told.append(f"{row.recipe}: {row.outcome}, {row.reason}")
        told += [f"{row.recipe}: {judged}" for judged in row.gates]
    wanted = ENOUGH_BLOCKS * BLOCK
    if result.positions < wanted:
        told.append(f"{result.positions} positions: below {wanted} the intervals are too narrow")
    if result.gates_source:
        told.append(f"gates from {result.gates_source}")
    return told


def _interval(estimate: Estimate, sign: str = "") -> str:
    ends = [] if estimate.low is None or estimate.high is None else [estimate.low, estimate.high]
    told = " ".join(_number(end, sign) for end in ends)
    return f"{_number(estimate.value, sign)} [{told}]" if ends else _number(estimate.value, sign)


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3g}"
