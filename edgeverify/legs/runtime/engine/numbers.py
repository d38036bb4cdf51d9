"""Compares what the engine computes with the LiteRT interpreter's results of the same file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgeverify.backends.litert_lm import Answers
from edgeverify.backends.sessions.session import Session
from edgeverify.core import noise
from edgeverify.core.results import PASS, UNCHECKED
from edgeverify.legs.runtime.engine.check import ADVICE, Seen, engine_feed, failed, some, told_token
from edgeverify.legs.runtime.engine.expected import Wanted
from edgeverify.legs.runtime.engine.replay import continuation, follow

LOOSELY = "by what rounding activations costs"


@dataclass(frozen=True)
class Allowed:
    """The difference between two logits, or of a log-probability, that rounding explains.

    Measured on the seven tiny ports: the engine's log-probabilities differ by at most 1.3e-6 from
    those of the interpreter's logits, which is 0.035 of what is allowed. Feeding a token that is
    not the prompt's moves them by 1000 times as much as is allowed.
    """

    floor: float
    ratio: float

    def gap(self, logits: np.ndarray) -> float:
        """How far apart rounding moves two logits of a row, (V,)."""
        return noise.explained_gap(logits, self.floor, self.ratio)


def greedy(
    answers: Answers,
    wanted: Wanted,
    session: Session,
    allowed: Allowed,
    steps: int,
    loosely: Allowed | None = None,
) -> Seen:
    """Checks that the engine continues as the file does; if not, names the feed that explains it.

    A different token is not a failure if its logit is as near to the file's choice as rounding
    explains (as in ``noise.greedy_mismatch``); what follows it cannot be compared.

    Args:
        answers, wanted, session: the engine's answers, the expected ones, the file.
        allowed: what float32 rounding explains.
        steps: requested tokens.
        loosely: what the rounding of activations explains, in a file that rounds them. It is tried
            last, because it may also cover a wrong feed.
    """
    tokens, rows = continuation(session, wanted.fed, steps)
    agreed = _agreement(answers, wanted, tokens, rows, allowed)
    if agreed is not None:
        return Seen("greedy", PASS, agreed)
    at = _common(answers.text, wanted, tokens)
    told = (
        f"the engine continues with {answers.text!r}, the file with {wanted.decode(tokens)!r}: "
        f"another token at {at}, and no near tie"
    )
    for manner, fed in _other_feeds(answers, wanted):
        tried, its_rows = continuation(session, fed, steps)
        if _agreement(answers, wanted, tried, its_rows, allowed) is not None:
            return failed("greedy", f"{told}; it is the file's answer to {manner}")
    if loosely is not None:
        agreed = _agreement(answers, wanted, tokens, rows, loosely)
        if agreed is not None:
            return Seen("greedy", PASS, f"{agreed} {LOOSELY}")
    return failed("greedy", told)


def _other_feeds(answers: Answers, wanted: Wanted) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Wrong ways to feed the prompt that are not the graph's fault."""
    plain = wanted.prompt_ids
    right = wanted.fed[: len(wanted.fed) - len(plain)]
    if right:
        yield f"the prompt without its start token {told_token(right[0], wanted)}", plain
        yield "the prompt with its start token twice", (*right, *wanted.fed)
    elif answers.start is not None:
        start = told_token(answers.start, wanted)
        yield f"the prompt with {start} before it", (answers.start, *plain)
    own = engine_feed(answers, wanted)
    yield f"what the engine says that it fed, {some(own, 0)}", own


def _agreement(
    answers: Answers, wanted: Wanted, tokens: list[int], rows: np.ndarray, allowed: Allowed
) -> str | None:
    """A remark on how the engine's text agrees with the file's, or None if it does not."""
    stops = {stop[0] for stop in answers.stops if len(stop) == 1}
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    texts = {wanted.decode(tokens[:end]), wanted.decode(tokens[: end + 1])}
    if answers.text in texts:
        return ""
    at = _common(answers.text, wanted, tokens)
    if at >= end:
        return None
    gaps = rows[at, tokens[at]] - rows[at]
    near = np.flatnonzero(gaps <= allowed.gap(rows[at]))
    for token in near:
        if token != tokens[at] and _begins(answers.text, wanted.decode([*tokens[:at], int(token)])):
            return f"compared up to token {at}, a near tie"
    return None


def _common(text: str, wanted: Wanted, tokens: Sequence[int]) -> int:
    """How many of the tokens the text begins with."""
    return next(
        (i for i in range(len(tokens)) if not _begins(text, wanted.decode(tokens[: i + 1]))),
        len(tokens),
    )


def _begins(text: str, beginning: str) -> bool:
    """Whether ``text`` starts with ``beginning``, ignoring the bytes of an incomplete character."""
    return text.startswith(beginning.rstrip("\N{REPLACEMENT CHARACTER}"))


def scores(
    answers: Answers,
    wanted: Wanted,
    session: Session,
    allowed: Allowed,
    loosely: Allowed | None = None,
) -> Seen:
    """Checks that the target's log-probabilities are those of the file's logits.

    LiteRT-LM 0.18.1 scores from another position than it generates from (its issue 3561). That is
    the engine's own fault and affects neither the file nor its answers. So it is reported and does
    not fail, if the scores are the file's once the interpreter takes the same step. The arguments
    are those of ``greedy``.
    """
    fed, target = engine_feed(answers, wanted), wanted.target_ids
    if answers.ids[-1] != target or len(answers.scores) != len(target):
        return Seen(
            "scores", UNCHECKED, "the target is tokenized otherwise, so there is nothing to compare"
        )
    plain = follow(session, fed, [*target[:-1]])
    off = _furthest(answers.scores, plain, target, allowed)
    if off is None:
        return Seen("scores", PASS)
    # LiteRT-LM issue 3561: after a prefill, scoring steps back twice, so the prompt's last token is
    # fed once more in the place of the token before it.
    back = follow(session, fed, [fed[-1], *target[:-1]], rewind=2)[1:] if len(fed) > 1 else plain
    told = (
        "text scoring feeds the prompt's last token once more, one position early (LiteRT-LM "
        f"issue 3561), so its scores are not the model's: {off}; with that step they are the file's"
    )
    stepped = Seen("scores", PASS, told, f"scores: {told}. {ADVICE['scores'].capitalize()}.")
    if len(fed) > 1 and _furthest(answers.scores, back, target, allowed) is None:
        return stepped
    if loosely is None:
        return failed("scores", off)
    # The rounding of activations may explain both; then the nearer one is taken.
    nearer = min((plain, back), key=lambda rows: _excess(answers.scores, rows, target).max())
    if _furthest(answers.scores, nearer, target, loosely) is not None:
        return failed("scores", off)
    return Seen("scores", PASS, f"compared {LOOSELY}: {off}") if nearer is plain else stepped


def _furthest(
    scores: Sequence[float], rows: np.ndarray, target: Sequence[int], allowed: Allowed
) -> str | None:
    """Describes the score that is furthest off, or returns None if rounding explains all."""
    right = _right(rows, target)
    excess = _excess(scores, rows, target)
    permitted = np.array([allowed.gap(row) for row in rows])
    at = int((excess / permitted).argmax())
    if excess[at] <= permitted[at]:
        return None
    return (
        f"token {at} of the target has {scores[at]:.4f}, the file gives {right[at]:.4f}; rounding "
        f"explains {permitted[at]:.2g}"
    )


def _right(rows: np.ndarray, target: Sequence[int]) -> np.ndarray:
    """The target's log-probabilities by the file's logits, (T,)."""
    return np.array([log_probability(row, token) for row, token in zip(rows, target, strict=True)])


def _excess(scores: Sequence[float], rows: np.ndarray, target: Sequence[int]) -> np.ndarray:
    """How far each score is from the file's, (T,)."""
    return np.abs(np.array(scores) - _right(rows, target))


def log_probability(logits: np.ndarray, token: int) -> float:
    """Log-probability of one token; logits (V,), the sum in float64."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return float(shifted[token] - np.log(np.exp(shifted).sum()))
