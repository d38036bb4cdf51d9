"""Runs a file in the LiteRT interpreter as the engine runs it: prefill, then token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeverify.backends.sessions.session import Session


def continuation(session: Session, fed: Sequence[int], steps: int) -> tuple[list[int], np.ndarray]:
    """The file's own greedy continuation, and the logits that chose it, (steps, V)."""
    rows = [_prompted(session, fed)]
    tokens = [int(rows[0].argmax())]
    while len(tokens) < steps:
        rows.append(session.decode(tokens[-1]))
        tokens.append(int(rows[-1].argmax()))
    return tokens, np.array(rows)


def follow(
    session: Session, fed: Sequence[int], tokens: Sequence[int], *, rewind: int = 0
) -> np.ndarray:
    """Returns the logits after the prompt and after each further token, (1 + tokens, V).

    Args:
        session: a file.
        fed: the prompt.
        tokens: the tokens that follow.
        rewind: how many positions to step back after the prompt.
    """
    rows = [_prompted(session, fed)]
    session.rewind(session.position - rewind)
    return np.array([*rows, *(session.decode(token) for token in tokens)])


def _prompted(session: Session, fed: Sequence[int]) -> np.ndarray:
    """Feeds a prompt into an empty cache and returns the logits of its last token, (V,).

    The last token is decoded, as the engine does, because not every file's prefill returns logits.
    """
    session.reset()
    pending = list(fed[:-1])
    while pending:
        length = next((n for n in session.lengths if n >= len(pending)), session.lengths[-1])
        if session.position + length > session.rows:
            session.decode(pending.pop(0))
            continue
        session.prefill(pending[:length], length=length)
        del pending[:length]
    return session.decode(fed[-1])
