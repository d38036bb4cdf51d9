"""The contracts of the attention masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeverify.core import taps
from edgeverify.suites.invariants import strategies
from edgeverify.suites.invariants.agreement import changed_rows, require_finite, require_same_logits
from edgeverify.suites.invariants.cache import unwritten
from edgeverify.suites.invariants.model import FIXED, CannotCheckError, Facts, Invariant, Violation
from edgeverify.suites.invariants.subject import DECODE, Plan, Subject, feed, play, shortest, steps

# A value edited into the cache shows through any attention weight above 1e-15, and stays finite.
EDIT = 1e8


def causal(subject: Subject, *, tokens: Sequence[int], plan: Plan, at: int, token: int) -> None:
    """Changing a token never changes an earlier position, to the bit."""
    wanted = play(subject.session, tokens, plan)
    got = play(subject.session, [*tokens[:at], token, *tokens[at + 1 :]], plan)
    what = f"another token at position {at}"
    for tap, rows in wanted.cache.items():
        earlier = changed_rows(got.cache[tap][:at], rows[:at])
        if len(earlier):
            raise Violation(f"{what} changed {tap} at position {earlier[0]}")
    before, after = ({p: run.logits[p] for p in run.logits if p < at} for run in (wanted, got))
    require_same_logits(after, before, what)


def window(
    subject: Subject,
    *,
    tokens: Sequence[int],
    block: int,
    start: int,
    step: tuple[str, int],
    row: int,
) -> None:
    """Each block sees exactly the rows of its mask: the last row outside has no influence, to the
    bit, and the first one inside has.

    One row of V in the block's cache is edited before a step. What the step writes in the next
    block (or its logits, after the last block) shows which positions saw the edit.
    """
    session, facts = subject.session, subject.facts
    signature, count = step
    play(session, tokens, shortest(facts, start))
    untouched = session.read_cache()
    value = taps.kv(block, "v")
    edited = {tap: rows.copy() for tap, rows in untouched.items()}
    edited[value][row] = EDIT * np.sign(edited[value][row] + 0.5)

    def outcome(cache: Mapping[str, np.ndarray]) -> np.ndarray:
        session.rewind(start)
        session.write_cache(cache)
        logits = feed(session, signature, tokens[start : start + count])
        if block + 1 < facts.num_blocks:
            return session.read_cache()[taps.kv(block + 1, "k")][start : start + count]
        return np.stack([logits[at] for at in sorted(logits)])

    changed = set((start + changed_rows(outcome(edited), outcome(untouched))).tolist())
    width = facts.windows[block] or facts.rows
    sees = {at for at in range(start, start + count) if row > at - width}
    for at in sorted(changed ^ sees):
        seen, right = ("does not see", "must") if at in sees else ("sees", "must not")
        raise Violation(
            f"block {block}: position {at} {seen} row {row}, {at - row} positions back, and {right}"
            f" (its window is {facts.windows[block] or 'all earlier positions'}); "
            f"{signature} of {count} at position {start}"
        )


def given(subject: Subject, *, tokens: Sequence[int], plan: Plan) -> None:
    """The mask that is built inside does what the same mask passed as an input does."""
    wanted = play(subject.sessions(mask_as_input=False), tokens, plan)
    got = play(subject.sessions(mask_as_input=True), tokens, plan)
    subject.agreement.require(got, wanted, "masks as inputs against masks built inside")


def open_rows(subject: Subject, *, tokens: Sequence[int], plan: Plan) -> None:
    """No position that is read has a fully masked row: each sees itself, and nothing is NaN.

    If the masks cannot be read (in a file), a fully masked row shows in its results. A row masked
    with -inf gives NaN. A row masked with the large negative number that the converter writes
    instead sees all rows alike, including those that were not yet written.
    """
    session = subject.session
    session.reset()
    for signature, start, count in steps(plan):
        fed = tokens[start : start + count]
        masks = session.masks_of_step(signature, fed)
        if masks == []:
            raise CannotCheckError("no mask passes the Generative API's attention functions")
        for mask in masks or ():
            for offset, row in enumerate(mask):
                if not row[start + offset] == 0:
                    raise Violation(
                        f"position {start + offset} does not see itself: its mask there is "
                        f"{row[start + offset]:g} ({signature} of {count} at position {start})"
                    )
        logits = feed(session, signature, fed)
        for at, values in logits.items():
            require_finite(taps.LOGITS, np.array([at]), values[None], signature)
    for tap, rows in session.read_cache().items():
        valid = rows[: session.position]
        require_finite(tap, np.arange(len(valid)), valid, "after the last step")
    if session.fixed and masks is None:
        unwritten(subject, tokens=tokens, plan=plan, seed=0, scale=1.0)


def _window_edges(facts: Facts) -> list[dict[str, Any]]:
    """For each block: one row inside and one outside, in decode and in the largest prefill."""
    tokens = strategies.random_tokens(facts, 2)
    edges = []
    for block, width in enumerate(facts.windows):
        for signature in strategies.watchable(facts, block)[:: len(facts.lengths)]:
            taken = 1 if signature == DECODE else facts.lengths[-1]
            start = min((width or facts.lengths[0]) + 3, facts.rows - taken)
            rows = {0} if width is None else {start - width, start - width + 1}
            edges += [
                {
                    "tokens": tokens[: start + taken],
                    "block": block,
                    "start": start,
                    "step": (signature, taken),
                    "row": row,
                }
                for row in sorted(rows)
                if 0 <= row < start
            ]
    return edges


def _all_signatures(facts: Facts) -> list[dict[str, Any]]:
    n = min(sum(facts.lengths) + 2, facts.rows)
    return [{"tokens": strategies.random_tokens(facts, 3)[:n], "plan": shortest(facts, n)}]


MASK = (
    Invariant("mask.causal", causal, strategies.changed_token),
    Invariant("mask.window", window, strategies.edited_row, _window_edges),
    Invariant("mask.input", given, strategies.padded_plan, _all_signatures, FIXED),
    Invariant("mask.open", open_rows, strategies.padded_plan, _all_signatures),
)
