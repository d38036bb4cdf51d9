"""The leg: every check of what the engine said, one tap each."""

from __future__ import annotations

from dataclasses import dataclass

from edgeverify.backends.litert_lm import Answers
from edgeverify.backends.sessions.session import Session
from edgeverify.core.compare import thresholds
from edgeverify.core.leg import Leg
from edgeverify.core.results import PASS, UNCHECKED, Finding, LegResult, TapResult, worst_outcome
from edgeverify.legs.runtime.engine import numbers, usage
from edgeverify.legs.runtime.engine.expected import Wanted

STEP = "litert_lm"


@dataclass(frozen=True)
class Floors:
    """How far logits of two right runs of a file may be apart, relative, in any row.

    Attributes:
        floating: where activations stay in float32.
        rounded: with what the rounding of activations costs, of a file that rounds them: a value
            on the edge may go either way, and all behind it follows. It is taken only where
            float32 rounding does not explain what the engine says.
    """

    floating: float
    rounded: float | None = None


def engine_leg(
    answers: Answers,
    wanted: Wanted,
    session: Session,
    floors: Floors,
    steps: int,
    leg: Leg,
) -> tuple[LegResult, tuple[Finding, ...]]:
    """Judges what the engine said.

    Args:
        answers: from ``backends.litert_lm.ask``.
        wanted: what is right.
        session: the same file in the LiteRT interpreter.
        floors: how far logits of two right runs of the file may be apart.
        steps: tokens of the continuation that was asked for.
        leg: what is judged.

    Returns:
        The leg, one tap per check, and one finding for each that is no plain pass.
    """
    limits, name = thresholds(leg.kind), str(leg)
    allowed = numbers.Allowed(floors.floating, limits.row)
    loosely = None if floors.rounded is None else numbers.Allowed(floors.rounded, limits.row)
    seen = [
        usage.tokenizer(answers, wanted),
        usage.cache_length(answers, wanted),
        usage.start_token(answers, wanted),
        usage.stop_tokens(answers, wanted),
        usage.chat_template(answers, wanted),
        numbers.greedy(answers, wanted, session, allowed, steps, loosely),
        numbers.scores(answers, wanted, session, allowed, loosely),
    ]
    taps = tuple(TapResult(f"{STEP}/{s.name}", s.outcome, reason=s.reason) for s in seen)
    odd = [s for s in seen if s.outcome != PASS]
    outcome = worst_outcome([s.outcome for s in seen])
    reason = "; ".join(f"{s.name}: {s.reason}" for s in odd) if outcome == UNCHECKED else ""
    findings = tuple(
        Finding(f"{name.replace(':', '.')}.{s.name}", name, f"{STEP}/{s.name}", s.finding)
        for s in seen
        if s.finding
    )
    notes = (f"answers {answers.text!r}",)
    return LegResult(leg, outcome, limits.as_dict(), taps, reason=reason, notes=notes), findings
