"""The line of a published size names every leg, also one that fails or was not compared."""

from __future__ import annotations

import json

from benchmarks.full_size import worst_ratios
from edgeverify.core.leg import Leg
from edgeverify.core.results import FAIL, PASS, UNCHECKED, LegResult, Report, TapResult
from edgeverify.report.read import report_from


def test_every_leg_is_named_also_without_a_number() -> None:
    right = TapResult("prefill.0/embed", PASS, error_ratio=1.25)
    broken = TapResult("prefill.0/embed", FAIL, error_ratio=float("inf"))
    legs = {
        "authoring": LegResult(Leg.of("authoring"), PASS, threshold={}, worst=right, taps=(right,)),
        "conversion": LegResult(
            Leg.of("conversion"), FAIL, threshold={}, worst=broken, taps=(broken,)
        ),
        "quantization:fp16": LegResult(
            Leg.of("quantization:fp16"), UNCHECKED, threshold={}, reason="no memory"
        ),
    }
    report = Report(case={}, environment={}, legs=legs)
    read = report_from(json.loads(json.dumps(report.to_dict())))
    told = worst_ratios(read)
    assert told == "worst authoring 1.25, conversion inf, quantization:fp16 –; 1 taps"
