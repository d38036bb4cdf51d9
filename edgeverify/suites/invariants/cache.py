"""The contracts of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeverify.core.errors import CacheFullError
from edgeverify.suites.invariants import strategies
from edgeverify.suites.invariants.agreement import changed_rows, require_same, require_same_logits
from edgeverify.suites.invariants.model import FIXED, Facts, Invariant, Violation
from edgeverify.suites.invariants.subject import (
    DECODE,
    Plan,
    Subject,
    feed,
    garbage,
    play,
    shortest,
    tokens_of,
    valid,
)


def split(subject: Subject, *, tokens: Sequence[int], plan: Plan, other: Plan) -> None:
    """n tokens give the same cache and logits in one prefill, in any chunks, and one by one."""
    got = play(subject.session, tokens, plan)
    wanted = play(subject.session, tokens, other)
    subject.agreement.require(got, wanted, f"{_told(plan)} against {_told(other)}")


def own_rows(subject: Subject, *, tokens: Sequence[int], plan: Plan, seed: int) -> None:
    """A write changes every row of its tokens, and no row but its own, pads included."""
    session = subject.session
    session.reset()
    noise = garbage(session.read_cache(), seed, 1.0)
    at = 0
    for signature, count in plan:
        # The pads of the step before may have left exactly the values that are written now.
        before = session.read_cache()
        for tap, rows in before.items():
            rows[at:] = noise[tap][at:]
        session.write_cache(before)
        feed(session, signature, tokens[at : at + count])
        after = session.read_cache()
        end = at + (1 if signature == DECODE else int(signature.removeprefix("prefill_")))
        for tap, rows in after.items():
            changed = set(changed_rows(rows, before[tap]).tolist())
            foreign = sorted(changed - set(range(at, end)))
            untouched = sorted(set(range(at, at + count)) - changed)
            if foreign or untouched:
                fault = f"changed row {foreign[0]}" if foreign else f"left row {untouched[0]} as is"
                raise Violation(
                    f"{signature} of {count} tokens at position {at} {fault} of {tap}; "
                    f"its rows are {at} to {end - 1}"
                )
        at += count


def unwritten(
    subject: Subject, *, tokens: Sequence[int], plan: Plan, seed: int, scale: float
) -> None:
    """Whatever finite values stand in rows that were not yet written change nothing, to the bit."""
    session = subject.session
    wanted = play(session, tokens, plan)

    def scribble(signature: str, start: int, count: int) -> None:
        cache = session.read_cache()
        noise = garbage(cache, seed, scale)
        for tap, rows in cache.items():
            rows[start:] = noise[tap][start:]
        session.write_cache(cache)

    got = play(session, tokens, plan, before=scribble)
    what = f"with values up to {scale:g} in unwritten rows"
    require_same(got.cache, wanted.cache, what)
    require_same_logits(got.logits, wanted.logits, what)


def rewind(
    subject: Subject, *, tokens: Sequence[int], abandoned: Sequence[int], plan: Plan, again: Plan
) -> None:
    """Rewinding and writing again equals writing once, to the bit."""
    session = subject.session
    back = tokens_of(plan)
    play(session, tokens, plan)
    kept = valid(session)
    # Write another continuation and give it up.
    mixed = [*tokens[:back], *abandoned[back:]]
    play(session, mixed, shortest(subject.facts, tokens_of(again), back), fresh=False)
    session.rewind(back)
    require_same(valid(session), kept, f"rows before {back}, after rewinding to it")
    got = play(session, tokens, again, fresh=False)
    play(session, tokens, plan)
    wanted = play(session, tokens, again, fresh=False)
    what = f"{_told(again)} after rewinding to {back}, against writing once"
    require_same(got.cache, wanted.cache, what)
    require_same_logits(got.logits, wanted.logits, what)


def signatures(
    subject: Subject, *, tokens: Sequence[int], plan: Plan, count: int, lengths: Sequence[int]
) -> None:
    """Every prefill signature gives the same answer for the same tokens."""
    first, *others = [(*plan, (f"prefill_{length}", count)) for length in lengths]
    wanted = play(subject.session, tokens, first)
    for other in others:
        got = play(subject.session, tokens, other)
        subject.agreement.require(got, wanted, f"{_told(other[-1:])} against {_told(first[-1:])}")


def layouts(subject: Subject, *, tokens: Sequence[int], plan: Plan) -> None:
    """The default and the transposed layout of the cache hold the same values."""
    wanted = play(subject.sessions(kv_layout="default"), tokens, plan)
    got = play(subject.sessions(kv_layout="transposed"), tokens, plan)
    subject.agreement.require(got, wanted, f"{_told(plan)}, transposed against default layout")


def end(subject: Subject, *, tokens: Sequence[int], plan: Plan, past: str) -> None:
    """The last row works, and one past it is an error before the runtime, and changes nothing."""
    session, rows = subject.session, subject.facts.rows
    got = play(session, tokens, plan)
    wanted = play(session, tokens, [(DECODE, 1)] * rows)
    subject.agreement.require(got, wanted, f"{_told(plan)} up to the last row, against one by one")
    before, position = session.read_cache(), session.position
    if session.position == rows and past != DECODE:
        session.rewind(rows - int(past.removeprefix("prefill_")) + 1)
        before, position = session.read_cache(), session.position
    count = 1 if past == DECODE or session.fixed else int(past.removeprefix("prefill_"))
    try:
        feed(session, past, [*tokens, *tokens][:count])
    except CacheFullError:
        require_same(session.read_cache(), before, f"{past} past the last row, refused")
        if session.position != position:
            raise Violation(f"{past}, refused, moved the position to {session.position}") from None
        return
    raise Violation(f"{past} at position {position} of {rows} rows was not refused")


def _told(plan: Plan) -> str:
    """Formats a plan as ``prefill_16, prefill_16 of 5, 3 x decode``."""
    told: list[str] = []
    decodes = 0
    for signature, count in [*plan, ("", 0)]:
        if signature == DECODE:
            decodes += 1
            continue
        if decodes:
            told.append(f"{decodes} x decode" if decodes > 1 else DECODE)
            decodes = 0
        if signature:
            full = signature == f"prefill_{count}"
            told.append(signature if full else f"{signature} of {count}")
    return ", ".join(told)


def _one_by_one(facts: Facts) -> list[dict[str, Any]]:
    """Edges that compare each filled signature, and both in a row, with decoding one by one."""
    tokens = strategies.random_tokens(facts, 0)
    counts = [*facts.lengths, min(sum(facts.lengths), facts.rows)]
    return [
        {
            "tokens": tokens[:count],
            "plan": shortest(facts, count),
            "other": ((DECODE, 1),) * count,
        }
        for count in counts
    ]


def _given_up(facts: Facts) -> list[dict[str, Any]]:
    """Edges with a chunk, then a few decode steps that are given up for others."""
    first, n = facts.lengths[0], min(facts.lengths[0] + 3, facts.rows)
    return [
        {
            "tokens": strategies.random_tokens(facts, 5)[:n],
            "abandoned": strategies.random_tokens(facts, 6)[:n],
            "plan": ((f"prefill_{first}", first),),
            "again": ((DECODE, 1),) * (n - first),
        }
    ]


def _whole_cache(facts: Facts) -> list[dict[str, Any]]:
    tokens = strategies.random_tokens(facts, 1)[: facts.rows]
    longest = f"prefill_{facts.lengths[-1]}"
    return [
        {"tokens": tokens, "plan": shortest(facts, facts.rows), "past": past}
        for past in (DECODE, longest)
    ]


CACHE = (
    Invariant("cache.split", split, strategies.two_plans, _one_by_one),
    Invariant("cache.own_rows", own_rows, strategies.padded_plan_and_seed, kinds=FIXED),
    Invariant("cache.unwritten", unwritten, strategies.padded_plan_and_garbage, kinds=FIXED),
    Invariant("cache.rewind", rewind, strategies.abandoned_tail, _given_up),
    Invariant("cache.signatures", signatures, strategies.same_chunk, kinds=FIXED),
    Invariant("cache.layouts", layouts, strategies.padded_plan, kinds=FIXED),
    Invariant("cache.end", end, strategies.full_cache, _whole_cache),
)
