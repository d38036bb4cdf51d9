"""Random sequences of everything a caller may do, compared with the Hugging Face model's own cache.

The machine draws prefills of any signature, padded prefills, decode steps and rewinds, across the
window and up to the last row. After each one, it compares cache and logits with the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edgeverify.backends.sessions import Session
from edgeverify.suites.invariants import strategies
from edgeverify.suites.invariants.agreement import Played
from edgeverify.suites.invariants.model import FIXED, Facts, Invariant
from edgeverify.suites.invariants.subject import DECODE, Subject, feed, valid

REWIND = "rewind"
# (signature, its real tokens), or ("rewind", (position,)).
Op = tuple[str, tuple[int, ...]]


def follow(subject: Subject, *, script: Sequence[Op]) -> None:
    """Any sequence of prefills, padded prefills, decode steps and rewinds gives the cache and the
    logits that the Hugging Face model has with a cache of its own.
    """
    truth, session = _both(subject)
    for at, op in enumerate(script):
        do(subject, session, truth, op, at)


def do(subject: Subject, session: Session, truth: Session, op: Op, at: int) -> None:
    """Performs one operation on both and compares them.

    Raises:
        Violation: the two are further apart than rounding explains.
    """
    name, values = op
    if name == REWIND:
        session.rewind(values[0])
        truth.rewind(values[0])
        return
    start = session.position
    got, wanted = (Played(feed(s, name, values), valid(s)) for s in (session, truth))
    what = f"step {at}: {name} of {len(values)} at position {start}, against the reference"
    subject.agreement.require(got, wanted, what)


def _both(subject: Subject) -> tuple[Session, Session]:
    session, truth = subject.session, subject.truth()
    session.reset()
    truth.reset()
    return truth, session


Perform = Callable[[list[Op], Callable[[], None]], None]


def machine(subject: Subject, perform: Perform) -> type[RuleBasedStateMachine]:
    """Returns the state machine of a subject.

    Args:
        subject: what is tested.
        perform: called with the script so far and a function that runs and judges its last step.
    """
    facts = subject.facts

    class Conversation(RuleBasedStateMachine):
        """One conversation."""

        def __init__(self) -> None:
            super().__init__()
            self.truth, self.session = _both(subject)
            self.script: list[Op] = []
            self.position = 0

        @initialize(tokens=strategies.conversations(facts))
        def begin(self, tokens: tuple[int, ...]) -> None:
            self.tokens = tokens

        @precondition(lambda self: self.position < facts.rows)
        @rule()
        def decode(self) -> None:
            self.feed(DECODE, 1)

        @precondition(lambda self: self.fitting())
        @rule(data=st.data())
        def prefill(self, data: Any) -> None:
            length = data.draw(st.sampled_from(self.fitting()))
            self.feed(f"prefill_{length}", length)

        @precondition(lambda self: self.fitting())
        @rule(data=st.data())
        def padded_prefill(self, data: Any) -> None:
            length = data.draw(st.sampled_from(self.fitting()))
            self.feed(f"prefill_{length}", data.draw(st.integers(1, length)))

        @precondition(lambda self: self.position > 0)
        @rule(data=st.data(), tokens=strategies.conversations(facts))
        def rewind(self, data: Any, tokens: tuple[int, ...]) -> None:
            self.tokens = tokens  # the rest is another continuation
            self.position = data.draw(st.integers(0, self.position - 1))
            self.perform((REWIND, (self.position,)))

        def fitting(self) -> list[int]:
            return [n for n in facts.lengths if n <= facts.rows - self.position]

        def feed(self, signature: str, count: int) -> None:
            start = self.position
            self.position += count
            self.perform((signature, self.tokens[start : start + count]))

        def perform(self, op: Op) -> None:
            self.script.append(op)
            at = len(self.script) - 1
            perform(self.script, lambda: do(subject, self.session, self.truth, op, at))

    return Conversation


def explore(subject: Subject, settings: Any, perform: Perform, seed: int) -> None:
    """Runs the machine.

    Args:
        subject: what is tested.
        settings: of Hypothesis.
        perform: as for ``machine``.
        seed: for drawing.

    Raises:
        Violation: with the shortest script found, which was passed to ``perform`` last.
    """
    drawn = hypothesis.seed(seed)(machine(subject, perform))
    run_state_machine_as_test(drawn, settings=settings)


def _to_the_end(facts: Facts) -> list[dict[str, Any]]:
    """Edges with every signature, a padded chunk, a rewind, and decode steps up to the last row."""
    tokens = strategies.random_tokens(facts, 4)
    script: list[Op] = []
    at = 0
    for length in facts.lengths:
        if at + length <= facts.rows:
            script.append((f"prefill_{length}", tokens[at : at + length]))
            at += length
    script.append((REWIND, (at // 2,)))
    at //= 2
    largest = facts.lengths[-1]
    if at + largest <= facts.rows:
        real = max(1, largest // 3)
        script.append((f"prefill_{largest}", tokens[at : at + real]))
        at += real
    script += [(DECODE, (token,)) for token in tokens[at:]]
    return [{"script": tuple(script)}]


MACHINE = Invariant("sequence.any", follow, lambda _: None, _to_the_end, FIXED)
