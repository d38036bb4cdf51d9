"""The standard names."""

from __future__ import annotations

import pytest

from edgeverify.core import taps


def test_the_taps_of_a_step_in_forward_order() -> None:
    assert taps.standard_taps(2) == (
        "embed",
        "blocks.0.attn_norm",
        "blocks.0.attn.q",
        "blocks.0.attn.k",
        "blocks.0.attn.v",
        "blocks.0.attn.out",
        "blocks.0.ff_norm",
        "blocks.0.ff.out",
        "blocks.0.out",
        "blocks.1.attn_norm",
        "blocks.1.attn.q",
        "blocks.1.attn.k",
        "blocks.1.attn.v",
        "blocks.1.attn.out",
        "blocks.1.ff_norm",
        "blocks.1.ff.out",
        "blocks.1.out",
        "final_norm",
        "logits",
        "kv.0.k",
        "kv.0.v",
        "kv.1.k",
        "kv.1.v",
    )


def test_without_logits_only_the_cache_of_the_last_block_is_left() -> None:
    without = taps.standard_taps(2, logits=False)
    assert set(taps.standard_taps(2)) - set(without) == {
        "blocks.1.attn.q",
        "blocks.1.attn.out",
        "blocks.1.ff_norm",
        "blocks.1.ff.out",
        "blocks.1.out",
        "final_norm",
        "logits",
    }
    assert list(without) == [tap for tap in taps.standard_taps(2) if tap in without]


@pytest.mark.parametrize(
    ("tap", "index", "outer"),
    [
        ("embed", None, False),
        ("blocks.12.attn.k", 12, False),
        ("kv.3.v", 3, True),
        ("final_norm", None, False),
        ("logits", None, True),
    ],
)
def test_what_a_name_tells(tap: str, index: int | None, outer: bool) -> None:
    assert taps.block_index(tap) == index
    assert taps.is_outer(tap) is outer
    assert taps.split(f"decode.0/{tap}") == ("decode.0", tap)
    # A step has no slash, so the first one ends it.
    assert taps.split(f"decode.0/{tap}/more") == ("decode.0", f"{tap}/more")


def test_names_are_made_and_read_alike() -> None:
    assert taps.block_index(taps.block(7, "out")) == 7
    assert taps.block_index(taps.kv(7, "k")) == 7
