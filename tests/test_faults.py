"""The faults that a check must find, and where it must see them first."""

from __future__ import annotations

import pytest

from edgeverify.report.model import FAIL
from edgeverify.verify import verify
from tests import variants

AUTHORING = ("reference", "reauthored")

# fault → the tap of the first divergence, without its step, and the blocks named alone
FAULTS = {
    "norm_eps_one_percent_off": ("blocks.0.attn_norm", {0, 1, 2, 3}),
    "embedding_scale_in_bfloat16": ("embed", set()),
    "query_scale_off": ("blocks.0.attn.out", {0, 1, 2, 3}),
    "rms_eps_1_1e_5": ("blocks.0.attn_norm", None),
    "gate_and_up_swapped_in_block_1": ("blocks.1.ff.out", {1}),
    "rope_base_off": ("blocks.0.attn.q", {0, 1, 2}),
    "fourth_layer_masked_wrongly": ("blocks.3.attn.out", {3}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_and_placed(fault: str) -> None:
    tap, blocks = FAULTS[fault]
    report = verify(getattr(variants, fault)(), backends=AUTHORING)
    leg = report.legs["authoring"]
    assert leg.outcome == FAIL
    assert leg.first_divergence is not None
    assert leg.first_divergence.tap.split("/")[1] == tap
    if blocks is not None:
        named = {int(name.split(".")[1]) for name in leg.first_divergence.isolated if "." in name}
        assert named == blocks
    assert any(tap in finding.tap for finding in report.findings)


def test_check_exits_with_1_and_says_where(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"{variants.__file__}:FAULTY"
    variants.FAULTY = variants.gate_and_up_swapped_in_block_1()  # type: ignore[attr-defined]
    assert path
