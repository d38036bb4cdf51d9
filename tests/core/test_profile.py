from __future__ import annotations

import numpy as np

from edgeverify.core.profile import MOST, along


def test_each_block_has_its_largest_ratio_at_each_position() -> None:
    rows = {
        "prefill.0/embed": np.array([0.0, 0.0]),
        "prefill.0/blocks.1.out": np.array([1.0, 5.0]),
        "decode.0/blocks.1.out": np.array([2.0]),
        "decode.0/kv.1.k": np.array([1.5, 1.0, 9.0]),
        "decode.0/logits": np.array([1.2345]),
    }
    assert along(rows, {"prefill.0": 0, "decode.0": 2}) == {
        "embed": (0.0, 0.0, None),
        "1": (1.5, 5.0, 9.0),
        "head": (None, None, 1.23),
    }


def test_a_long_conversation_keeps_its_peaks_in_few_values() -> None:
    ratios = np.ones(3 * MOST + 1)
    ratios[400] = 77.0
    series = along({"prefill.0/blocks.0.out": ratios}, {})["0"]
    assert len(series) <= MOST
    assert max(value for value in series if value is not None) == 77.0
