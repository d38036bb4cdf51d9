from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgeverify.core import taps
from edgeverify.core.leg import Leg
from edgeverify.core.results import FAIL, FileFacts, LegResult, Report, TapResult
from edgeverify.litert.contents import file_facts
from edgeverify.litert.flatbuffer.graph import ModelFile
from edgeverify.report.model_explorer import LARGEST, node_data


@pytest.mark.slow
def test_each_tap_is_made_by_an_operator_of_its_signature(converted: Callable[..., Any]) -> None:
    made = converted("tinyllama", "default")
    facts = file_facts(made.path)
    file = ModelFile(made.path)
    assert facts.bytes == made.path.stat().st_size
    decode = facts.nodes["decode"]
    assert set(decode) == set(taps.standard_taps(made.num_blocks))
    ops = file.graph("decode").ops
    assert ops[decode["kv.0.k"]].name == "DYNAMIC_UPDATE_SLICE"
    assert ops[decode["logits"]].name == "FULLY_CONNECTED"
    assert sum(facts.ops["decode"].values()) == len(ops)
    assert facts.graphs["decode"] == "decode"


def test_node_data_has_the_largest_ratio_over_the_steps_of_a_signature() -> None:
    found = (
        TapResult("prefill.0/logits", "pass", error_ratio=1.0),
        TapResult("prefill.1/logits", FAIL, error_ratio=7.0),
        TapResult("prefill.1/embed", FAIL, reason="missing"),
    )
    report = Report(
        case={"steps": [{"name": f"prefill.{n}", "signature": "prefill_16"} for n in range(2)]},
        environment={},
        legs={"conversion": LegResult(Leg.of("conversion"), FAIL, {"rms": 1.5, "row": 4.0}, found)},
        files={
            "conversion": FileFacts(
                1, graphs={"prefill_16": "main"}, nodes={"prefill_16": {"embed": 2, "logits": 9}}
            )
        },
    )
    graph = node_data(report, "conversion")["main"]
    assert graph["results"] == {"9": {"value": 7.0}, "2": {"value": LARGEST}}
    assert graph["thresholds"][0] == {"value": 1.5, "bgColor": "#c8e6c9"}
    assert node_data(report, "authoring") == {}
