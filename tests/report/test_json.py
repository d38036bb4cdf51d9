from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from edgeverify.core.results import Divergence, Report
from edgeverify.report.json import render


def test_the_contract_s_keys_are_there(report: Callable[..., Report]) -> None:
    data = json.loads(render(report("fail")))
    assert {"schema", "outcome", "case", "environment", "legs", "audits", "findings"} <= set(data)
    assert (data["schema"], data["outcome"]) == (1, "fail")
    leg = data["legs"]["authoring"]
    assert leg["threshold"] == {"rms": 1.5, "row": 4.0}
    assert leg["worst"]["tap"] == "prefill.0/blocks.1.attn.k"
    assert leg["first_divergence"] == {
        "tap": "prefill.0/blocks.1.attn.k",
        "error_ratio": 71.0,
        "isolated": ["blocks.1.attn.k"],
    }
    assert {"tap", "error", "floor", "error_ratio", "row_ratio", "outcome"} <= set(leg["taps"][0])
    assert data["legs"]["conversion"]["first_divergence"] is None
    assert data["findings"][0]["leg"] == "authoring"


def test_infinity_is_written_as_text(report: Callable[..., Report]) -> None:
    made = report("fail")
    leg = replace(
        made.legs["authoring"], first_divergence=Divergence("prefill.0/embed", float("inf"))
    )
    made = replace(made, legs={"authoring": leg})
    data = json.loads(render(made), parse_constant=lambda text: 1 / 0)
    assert data["legs"]["authoring"]["first_divergence"]["error_ratio"] == "inf"


def test_the_answer_is_there(report: Callable[..., Report]) -> None:
    answer = json.loads(render(report("fail")))["answer"]
    assert list(answer)[:7] == ["outcome", "case", "named", "cause", "where", "next", "command"]
    assert answer["parts"][0] == {
        "kind": "leg",
        "name": "authoring",
        "outcome": "fail",
        "text": "Hugging Face → port: 2 of 66 taps differ",
    }
