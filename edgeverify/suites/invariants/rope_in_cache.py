"""The contract of RoPE as the cache shows it, on any implementation: keys of the first block."""

from __future__ import annotations

import numpy as np

from edgeverify.core import taps
from edgeverify.suites.invariants import strategies
from edgeverify.suites.invariants.model import Facts, Invariant
from edgeverify.suites.invariants.rope_floor import rotated_exactly
from edgeverify.suites.invariants.subject import Plan, Subject, play, shortest, tokens_of


def turned(subject: Subject, *, token: int, plan: Plan) -> None:
    """In the first block's cache, a token's key at position p is its key at position 0, turned by
    p: before the first attention, nothing else depends on the position.
    """
    count = tokens_of(plan)
    cache = play(subject.session, (token,) * count, plan).cache
    keys, positions = cache[taps.kv(0, "k")], np.arange(count)
    at_origin = np.repeat(keys[:1], count, axis=0)
    wanted = rotated_exactly(subject.facts.rope, at_origin, positions)
    what = f"keys of token {token}, against its key at position 0, turned"
    subject.agreement.require_rows(taps.kv(0, "k"), range(count), keys, wanted, what)


def _whole_cache(facts: Facts) -> list[dict[str, object]]:
    return [{"token": facts.vocab_size - 1, "plan": shortest(facts, facts.rows)}]


KEYS = (Invariant("rope.keys", turned, strategies.repeated_token, _whole_cache),)
