"""Tables of quantization: what moved the logits of each file, and the figures of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgeverify.core.leg import QUANTIZATION
from edgeverify.core.results import FileFacts, LegResult, Report
from edgeverify.report.html.parts import badge, table
from edgeverify.report.words import number, plural, scientific


def attributions(report: Report) -> str:
    """Who moved the logits of each quantized file, how far, and how large the file is."""
    rows = [
        _attribution(leg, report.files.get(leg.name))
        for leg in report.legs.values()
        if leg.leg.kind == QUANTIZATION
    ]
    if not rows:
        return ""
    heads = ("recipe", "outcome", "MB", "by weights", "activations", "kernels", "KL of the file",
             "KL by weights", "taps as predicted, worst")  # fmt: skip
    text = (
        "How far each cause moved the logits (relative L2), and the mean Kullback-Leibler "
        "divergence from the reference over the case's positions, in nats."
    )
    return f"<h2>Quantization</h2><p class='muted'>{text}</p>{table(heads, rows)}"


def _attribution(leg: LegResult, facts: FileFacts | None) -> str:
    moved = leg.attribution
    divergence = moved.get("kl") or {}
    control = moved.get("control") or {}
    cells = [
        "–" if facts is None else f"{facts.bytes / 1e6:.1f}",
        *(scientific(moved.get(who)) for who in ("weights", "activations", "kernels")),
        *(scientific(divergence.get(which)) for which in ("file", "weights")),
        f"{control['taps']}, {number(control['worst'])}" if control else "–",
    ]
    recipe = leg.leg.recipe or leg.name
    return f"<tr><th>{escape(recipe)}</th><td>{badge(leg.outcome)}</td>{_numbers(cells)}</tr>"


def evaluation(told: Mapping[str, Any]) -> str:
    """The table of an evaluation with its intervals, and its gates.

    Args:
        told: the JSON of ``edgeverify eval``.
    """
    rows = [_recipe(recipe) for recipe in told["recipes"]]
    heads = ("recipe", "outcome", "MB", "mean KL [95 %]", "KL 99 %", "top-1 [95 %]",
             "top-5 [95 %]", "perplexity", "KL against float [95 %]", "tok/s")  # fmt: skip
    own = told["reference"]
    text = (
        f"{plural(told['positions'], 'position')} of {told['text']}; reference perplexity "
        f"{own['perplexity']['value']:.4g} ± {own['perplexity_se']:.2g}. KL in nats; intervals by "
        "block bootstrap."
    )
    gates = [
        f"<li>{escape(recipe['recipe'])}: {escape(_gate(gate))}</li>"
        for recipe in told["recipes"]
        for gate in recipe["gates"]
    ]
    listed = f"<h3>Gates</h3><ul>{''.join(gates)}</ul>" if gates else ""
    return (
        f"<h2>Quality of the recipes</h2><p class='muted'>{escape(text)}</p>"
        f"{table(heads, rows)}{listed}"
    )


def _gate(gate: Any) -> str:
    if isinstance(gate, Mapping):
        return ", ".join(f"{key} {value}" for key, value in gate.items() if value is not None)
    return str(gate)


def _recipe(told: Mapping[str, Any]) -> str:
    found = told.get("figures") or {}
    size, speed = told.get("size_bytes"), told.get("tokens_per_second")
    perplexity = found.get("perplexity")
    error = found.get("perplexity_se")
    cells = [
        "–" if size is None else f"{size / 1e6:.1f}",
        interval(found.get("mean_kl")),
        interval(found.get("p99_kl"), ends=False),
        interval(found.get("top1"), percent=True),
        interval(found.get("top5"), percent=True),
        "–"
        if perplexity is None
        else f"{perplexity['value']:.4g}" + ("" if error is None else f" ± {error:.2g}"),
        interval(found.get("mean_kl_over_float")),
        "–" if speed is None else f"{speed:.0f}",
    ]
    return (
        f"<tr><th>{escape(told['recipe'])}</th><td>{badge(told['outcome'])}"
        f"{escape(' ' + told['reason'] if told.get('reason') else '')}</td>{_numbers(cells)}</tr>"
    )


def interval(
    estimate: Mapping[str, float | None] | None, *, ends: bool = True, percent: bool = False
) -> str:
    """``0.012 [0.010 0.014]``; "–" where it was not measured."""
    if not estimate or estimate.get("value") is None:
        return "–"
    scale, unit = (100.0, " %") if percent else (1.0, "")
    value, low, high = (estimate.get(name) for name in ("value", "low", "high"))
    told = f"{scale * (value or 0.0):.3g}{unit}"
    if not ends or low is None or high is None:
        return told
    return f"{told} [{scale * low:.3g} {scale * high:.3g}]"


def _numbers(cells: Sequence[str]) -> str:
    return "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells)
