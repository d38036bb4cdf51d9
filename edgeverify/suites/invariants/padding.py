"""The contracts of chunks that do not fill their signature."""

from __future__ import annotations

from collections.abc import Sequence

from edgeverify.suites.invariants import strategies
from edgeverify.suites.invariants.agreement import require_same, require_same_logits
from edgeverify.suites.invariants.model import FIXED, Invariant
from edgeverify.suites.invariants.subject import DECODE, Plan, Subject, play, shortest, tokens_of


def equal(
    subject: Subject,
    *,
    tokens: Sequence[int],
    start: int,
    chunk: tuple[str, int],
    following: Plan,
) -> None:
    """A padded prefill equals the unpadded one at its real positions, and so does what follows."""
    past = shortest(subject.facts, start)
    got = play(subject.session, tokens, [*past, chunk, *following])
    one_by_one = [(DECODE, 1)] * (chunk[1] + tokens_of(following))
    wanted = play(subject.session, tokens, [*past, *one_by_one])
    what = f"{chunk[0]} of {chunk[1]} tokens at position {start}, against no pads"
    subject.agreement.require(got, wanted, what)


def content(
    subject: Subject,
    *,
    tokens: Sequence[int],
    start: int,
    chunk: tuple[str, int],
    following: Plan,
    pad: int,
    other: int,
) -> None:
    """Which tokens the pads are changes nothing, to the bit: here, nor in what follows."""
    plan = [*shortest(subject.facts, start), chunk, *following]
    longest = subject.facts.lengths[-1]
    got, wanted = (play(subject.session, tokens, plan, pads=(p,) * longest) for p in (pad, other))
    what = f"pads {pad} against pads {other}, {chunk[0]} of {chunk[1]} at position {start}"
    require_same(got.cache, wanted.cache, what)
    require_same_logits(got.logits, wanted.logits, what)


PADDING = (
    Invariant("padding.equal", equal, strategies.padded_chunk, kinds=FIXED),
    Invariant("padding.content", content, strategies.padded_chunk_and_pads, kinds=FIXED),
)
