"""Node data for Google's Model Explorer: the error ratios on the graph of the .tflite.

The format is ``ModelNodeData`` of model_explorer/node_data_builder.py (ai-edge-model-explorer
0.1.34). A graph's id is its subgraph's name and a node's id the place of its operator, as
src/builtin-adapter/direct_flatbuffer_to_json_graph_convert.cc has them.
"""

from __future__ import annotations

import json
import math
from typing import Any

from edgeverify.core.results import FAIL, Report
from edgeverify.report.html.heat import SCALE

LARGEST = 1e30  # for a failure that has no ratio, or an infinite one: JSON has no infinity


def render(report: Report, leg: str = "conversion") -> str:
    """The JSON of one leg's ratios.

    Args:
        report: with the facts of the leg's file.
        leg: whose file it is.
    """
    return json.dumps(node_data(report, leg), indent=1) + "\n"


def node_data(report: Report, leg: str) -> dict[str, Any]:
    """Graph id → its results; the largest ratio of a tap over the steps of its signature."""
    facts, judged = report.files.get(leg), report.legs.get(leg)
    if facts is None or judged is None:
        return {}
    signatures = {step["name"]: step["signature"] for step in report.case.get("steps", ())}
    allowed = judged.threshold.get("rms") or 1.0
    out: dict[str, Any] = {}
    for result in judged.taps:
        step, _, tap = result.tap.partition("/")
        signature = signatures.get(step, "")
        node = facts.nodes.get(signature, {}).get(tap)
        if node is None:
            continue
        value = result.error_ratio
        if value is None or not math.isfinite(value):
            if result.outcome != FAIL:
                continue
            value = LARGEST
        # Not one name for all legs: Model Explorer shows several files at once.
        graph = out.setdefault(
            facts.graphs[signature],
            {"results": {}, "name": f"error ratio, {leg}", "thresholds": _thresholds(allowed)},
        )
        before = graph["results"].setdefault(str(node), {"value": value})
        before["value"] = max(before["value"], value)
    return out


def _thresholds(allowed: float) -> list[dict[str, Any]]:
    return [
        {"value": limit * allowed if math.isfinite(limit) else LARGEST, "bgColor": shade}
        for limit, shade in SCALE
    ]
