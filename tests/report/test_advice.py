from __future__ import annotations

import pytest

from edgeverify.core import taps
from edgeverify.report.advice import UNKNOWN, hint


@pytest.mark.parametrize("tap", taps.standard_taps(2))
def test_every_standard_tap_has_a_hint_of_its_own(tap: str) -> None:
    assert hint(tap) != UNKNOWN
    assert hint(f"decode.3/{tap}") == hint(tap)


def test_hints_name_the_usual_suspects() -> None:
    assert "RoPE" in hint("prefill.0/blocks.3.attn.k")
    assert "scale" in hint("embed")
    assert "gate and up" in hint("blocks.11.ff.out")
    assert "window" in hint("blocks.0.attn.out")
    assert "row that is written" in hint("decode.0/kv.12.v")
    assert "softcap" in hint("logits")


def test_an_unknown_tap_still_gets_an_answer() -> None:
    assert hint("blocks.0.moe.router") == UNKNOWN
