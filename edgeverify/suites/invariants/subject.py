"""The subject of an invariant: sessions of one implementation, and how a script is played.

A *plan* says how a conversation is cut into steps:
``(("prefill_16", 16), ("prefill_16", 5), ("decode", 1))`` fills a signature, pads one with 11
tokens, and decodes one. The token at each position comes from the conversation, so every plan of n
tokens feeds the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from edgeverify.backends.sessions import Session
from edgeverify.suites.invariants.agreement import Agreement, Played
from edgeverify.suites.invariants.model import Facts

Plan: TypeAlias = Sequence[tuple[str, int]]
DECODE = "decode"


@dataclass(frozen=True)
class Subject:
    """One implementation of one model.

    Attributes:
        implementation: ``reference``, ``reauthored`` or ``tflite-{kernel}``.
        facts: of the model.
        agreement: how far apart two of its runs may be.
        sessions: makes, or finds, the session of a variant: keyword arguments ``kv_layout``,
            ``mask_as_input`` and ``batch``; omitted ones take the run's own values.
        truth: makes a session of the Hugging Face model.
    """

    implementation: str
    facts: Facts
    agreement: Agreement
    sessions: Callable[..., Session]
    truth: Callable[[], Session]

    @property
    def session(self) -> Session:
        """The run's own session, as the last test left it."""
        return self.sessions()


def steps(plan: Plan, start: int = 0) -> Iterator[tuple[str, int, int]]:
    """Signature, position of the first token, and number of real tokens of each step."""
    for signature, count in plan:
        yield signature, start, count
        start += count


def tokens_of(plan: Plan) -> int:
    """How many real tokens a plan feeds."""
    return sum(count for _, count in plan)


def feed(
    session: Session, signature: str, tokens: Sequence[int], pads: Sequence[int] | None = None
) -> dict[int, np.ndarray]:
    """Runs one step.

    Returns:
        Position → logits (V,) float32, empty for a signature that returns none.
    """
    start = session.position
    if signature == DECODE:
        return {start: session.decode(tokens[0])}
    length = int(signature.removeprefix("prefill_"))
    logits = session.prefill(tokens, length=length, pads=pads)
    return {} if logits is None else {start + row: logits[row] for row in range(len(tokens))}


def play(
    session: Session,
    tokens: Sequence[int],
    plan: Plan,
    *,
    pads: Sequence[int] | None = None,
    fresh: bool = True,
    before: Callable[[str, int, int], Any] = lambda *_: None,
) -> Played:
    """Plays a plan.

    Args:
        session: it is left at the plan's end.
        tokens: the conversation: the id at each position, the plan's end included.
        plan: the steps.
        pads: tokens that fill chunks that are too short.
        fresh: begin with an empty cache; otherwise continue from where the session is.
        before: called before each step with signature, position and number of tokens.

    Returns:
        The logits of all steps and the cache's valid rows at the end.
    """
    if fresh:
        session.reset()
    logits: dict[int, np.ndarray] = {}
    for signature, start, count in steps(plan, session.position):
        before(signature, start, count)
        logits |= feed(session, signature, tokens[start : start + count], pads)
    return Played(logits, valid(session))


def valid(session: Session) -> dict[str, np.ndarray]:
    """The cache's rows of real tokens."""
    return {tap: rows[: session.position] for tap, rows in session.read_cache().items()}


def shortest(facts: Facts, count: int, start: int = 0) -> tuple[tuple[str, int], ...]:
    """A plan of few steps for ``count`` tokens from ``start`` on, without pads."""
    plan: list[tuple[str, int]] = []
    while count:
        length = max((n for n in facts.lengths if n <= count), default=0)
        plan.append((f"prefill_{length}", length) if length else (DECODE, 1))
        count -= length or 1
    return tuple(plan)


def garbage(cache: Mapping[str, np.ndarray], seed: int, scale: float) -> dict[str, np.ndarray]:
    """A cache of the same shapes, full of finite noise: normal deviates times ``scale``."""
    rng = np.random.default_rng(seed)
    return {
        tap: (rng.standard_normal(rows.shape) * scale).astype(np.float32)
        for tap, rows in cache.items()
    }
