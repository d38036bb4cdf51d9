"""Figures of quantization: what moved the logits of each file, and those of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeverify.core.leg import QUANTIZATION
from edgeverify.core.results import FileFacts, LegResult, Report
from edgeverify.report.words import number, plural, scientific


def attributions(report: Report) -> list[tuple[str, str, list[str]]]:
    """Recipe, outcome and cells: who moved the logits of each quantized file, and how far."""
    return [
        (leg.leg.recipe or leg.name, leg.outcome, _attribution(leg, report.files.get(leg.name)))
        for leg in report.legs.values()
        if leg.leg.kind == QUANTIZATION
    ]


def _attribution(leg: LegResult, facts: FileFacts | None) -> list[str]:
    moved = leg.attribution
    divergence = moved.get("kl") or {}
    control = moved.get("control") or {}
    return [
        "–" if facts is None else f"{facts.bytes / 1e6:.1f}",
        *(scientific(moved.get(who)) for who in ("weights", "activations", "kernels")),
        *(scientific(divergence.get(which)) for which in ("file", "weights")),
        f"{control['taps']}, {number(control['worst'])}" if control else "–",
    ]


def evaluation(told: Mapping[str, Any]) -> dict[str, Any]:
    """The table of an evaluation with its intervals, and its gates.

    Args:
        told: the JSON of ``edgeverify eval``.
    """
    own = told["reference"]
    text = (
        f"{plural(told['positions'], 'position')} of {told['text']}; reference perplexity "
        f"{own['perplexity']['value']:.4g} ± {own['perplexity_se']:.2g}. KL in nats; intervals by "
        "block bootstrap."
    )
    recipes = told["recipes"]
    return {
        "text": text,
        "rows": [(r["recipe"], r["outcome"], r.get("reason", ""), _recipe(r)) for r in recipes],
        "gates": [f"{r['recipe']}: {_gate(gate)}" for r in recipes for gate in r["gates"]],
    }


def _gate(gate: Any) -> str:
    if isinstance(gate, Mapping):
        return ", ".join(f"{key} {value}" for key, value in gate.items() if value is not None)
    return str(gate)


def _recipe(told: Mapping[str, Any]) -> list[str]:
    found = told.get("figures") or {}
    size, speed = told.get("size_bytes"), told.get("tokens_per_second")
    perplexity = found.get("perplexity")
    error = found.get("perplexity_se")
    return [
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
