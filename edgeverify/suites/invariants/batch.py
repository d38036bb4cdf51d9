"""The contract of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeverify.suites.invariants import strategies
from edgeverify.suites.invariants.agreement import (
    Played,
    changed_rows,
    require_same,
    require_same_logits,
)
from edgeverify.suites.invariants.model import Invariant, NotApplicableError, Violation
from edgeverify.suites.invariants.subject import Subject, garbage, play, shortest


def rows(
    subject: Subject, *, tokens: Sequence[int], others: Sequence[int], count: int, row: int
) -> None:
    """Rows of a batch do not influence one another, to the bit, and each equals a batch of one."""
    session = subject.sessions(batch=True)
    if not session.batch:
        raise NotApplicableError("its decode signature takes one conversation at a time")
    plan = shortest(subject.facts, count)
    pasts = []
    for conversation in (tokens, others):
        play(session, conversation, plan)
        pasts.append(session.read_cache())
    row %= session.batch
    turns = [at % 2 for at in range(session.batch)]
    fed = [(tokens, others)[turn][count] for turn in turns]
    caches = [pasts[turn] for turn in turns]
    logits, after = session.decode_batch(fed, caches)

    # Replace one row by another conversation, made of noise: all other rows must stay the same.
    replaced = [
        garbage(cache, seed=1, scale=1.0) if at == row else cache for at, cache in enumerate(caches)
    ]
    other_logits, other_after = session.decode_batch(
        [0 if at == row else token for at, token in enumerate(fed)], replaced
    )
    what = f"another conversation in row {row} of the batch"
    for at in range(session.batch):
        same = not len(changed_rows(other_logits[at : at + 1], logits[at : at + 1]))
        if at == row and same:
            raise Violation(f"{what} did not change that row's logits")
        if at != row:
            require_same_logits({at: other_logits[at]}, {at: logits[at]}, f"{what}, row {at}")
            require_same(other_after[at], after[at], f"{what}, row {at}")
    _require_as_alone(subject, tokens, count, logits[0], after[0])


def _require_as_alone(
    subject: Subject,
    tokens: Sequence[int],
    count: int,
    logits: np.ndarray,
    after: dict[str, np.ndarray],
) -> None:
    """Compares the first row with a batch of one, in the run's own session."""
    session = subject.session
    play(session, tokens, shortest(subject.facts, count))
    alone = {count: session.decode(tokens[count])}
    end = count + 1
    wanted = Played(alone, {tap: rows[:end] for tap, rows in session.read_cache().items()})
    got = Played({count: logits}, {tap: rows[:end] for tap, rows in after.items()})
    subject.agreement.require(got, wanted, "the first row of a batch, against a batch of one")


BATCH = (Invariant("batch.rows", rows, strategies.neighbours),)
