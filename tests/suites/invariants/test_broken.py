"""Each invariant is broken by a port that is broken in just that way, and shows a short case."""

from __future__ import annotations

from typing import Any

import pytest

from edgeverify.core.results import FAIL, PASS, UNCHECKED
from edgeverify.suites.invariants import INVARIANTS
from edgeverify.suites.invariants.model import SESSIONS
from tests.suites.invariants import broken
from tests.suites.invariants.conftest import Examine

# fault → (an invariant that must not hold, what its message says)
BROKEN: dict[str, tuple[Any, str, str]] = {
    "decode mask off by one": (broken.decode_mask_off_by_one, "mask.open", "does not see itself"),
    "the same, by its results": (broken.decode_mask_off_by_one, "cache.split", "differs at"),
    "cache row off by one": (
        broken.row_off_by_one_from_the_second_step_on,
        "cache.own_rows",
        "changed row",
    ),
    "the same, in a sequence": (
        broken.row_off_by_one_from_the_second_step_on,
        "sequence.any",
        "against the reference",
    ),
    "pads that write": (broken.pads_that_write, "padding.content", "changed"),
    "pads that write, by rows": (broken.pads_that_write, "cache.own_rows", "changed row 0"),
    "pads that write, by values": (broken.pads_that_write, "padding.equal", "differs at"),
    "window one too wide": (
        lambda: broken.window_off_by(1),
        "mask.window",
        "13 positions back, and must not",
    ),
    "window one too narrow": (
        lambda: broken.window_off_by(-1),
        "mask.window",
        "12 positions back, and must",
    ),
    "built mask is not the given one": (
        lambda: broken.window_off_by(1),
        "mask.input",
        "masks as inputs against masks built inside",
    ),
    "one mask for all layers": (broken.one_mask_for_all_layers, "mask.window", "must not"),
    "positions wrong in decode": (broken.positions_wrong_in_decode, "cache.split", "kv.0.k"),
    "half-precision cos and sin": (broken.half_precision_rope, "sequence.any", "kv.0.k"),
    "K and V swapped at one length": (
        broken.k_and_v_swapped_at_16,
        "cache.signatures",
        "kv.0.k differs",
    ),
    "the same, by the keys": (broken.half_precision_rope, "rope.keys", "turned: kv.0.k differs"),
    "unwritten rows are seen": (broken.sees_the_next_row, "cache.unwritten", "changed"),
    "later tokens are seen": (broken.sees_the_next_row, "mask.causal", "another token"),
    "a state of its own": (
        broken.remembers_the_longest_position,
        "cache.rewind",
        "the logits changed",
    ),
    "one layout is other": (broken.transposed_v_off, "cache.layouts", "kv.0.v differs"),
    "rows of a batch mix": (broken.rows_of_a_batch_mixed, "batch.rows", "row"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_port_breaks_its_invariant(fault: str, under_examination: Examine) -> None:
    make, invariant, told = BROKEN[fault]
    examination = under_examination(make())
    result = examination.examine(invariant, "reauthored")
    assert result.outcome == FAIL
    assert told in result.reason
    assert result.contract == INVARIANTS[invariant].contract
    # The case it shows is enough to see it again.
    with pytest.raises(Exception, match=r".") as raised:
        examination.ask(invariant, "reauthored", result.arguments)
    assert str(raised.value) == result.reason
    assert f"{invariant!r}, 'reauthored'" in result.reproduction


def test_every_invariant_but_the_cache_end_has_a_port_that_breaks_it() -> None:
    """Those of a rotation alone are broken in test_rope.py."""
    of_sessions = {name for name, invariant in INVARIANTS.items() if invariant.of == SESSIONS}
    assert of_sessions - {name for _, name, _ in BROKEN.values()} == {"cache.end"}


def test_a_session_that_lets_a_step_past_the_end_breaks_the_invariant(
    under_examination: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeverify.backends.sessions import Session

    def unchecked(self: Session, signature: str, tokens: list[int], real: int) -> Any:
        if self.position + len(tokens) > self.rows:
            self.position = self.rows - len(tokens)  # as the runtime does it: silently moved back
        logits = self._step(signature, tokens, real)
        self.position += real
        return logits[:real]

    monkeypatch.setattr(Session, "_checked_step", unchecked)
    result = under_examination("tinyllama").examine("cache.end", "reauthored")
    assert result.outcome == FAIL
    assert "was not refused" in result.reason


def test_what_is_shown_is_short(under_examination: Examine) -> None:
    result = under_examination(broken.positions_wrong_in_decode()).examine(
        "cache.split", "reauthored"
    )
    # One decode step against a prefill would do, if there were a prefill of one token.
    assert len(result.arguments["tokens"]) == 16
    result = under_examination(broken.row_off_by_one_from_the_second_step_on()).examine(
        "sequence.any", "reauthored"
    )
    assert len(result.arguments["script"]) == 2


def test_nothing_else_is_reported_of_a_window(under_examination: Examine) -> None:
    examination = under_examination(broken.window_off_by(1))
    for invariant in ("cache.split", "cache.own_rows", "padding.content", "mask.causal"):
        assert examination.examine(invariant, "reauthored").outcome == PASS


@pytest.mark.parametrize("invariant", ["mask.open", "rope.reference", "rope.norm"])
def test_what_cannot_be_read_in_a_port_is_unchecked(
    invariant: str, under_examination: Examine
) -> None:
    """Not "not applicable": that counts neither way, and would come out green."""
    result = under_examination(broken.attention_of_its_own()).examine(invariant, "reauthored")
    assert result.outcome == UNCHECKED


def test_the_window_is_asked_for_where_prefills_return_no_logits(
    under_examination: Examine,
) -> None:
    examination = under_examination("gemma2", prefill_logits=False)
    result = examination.examine("mask.window", "reauthored")
    assert result.outcome == PASS
    assert result.examples > 10
