"""The leg of LiteRT-LM: every check of the engine's answers, one tap each."""

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
    """How far the logits of two correct runs of a file may be apart, relative, in any row.

    Attributes:
        floating: if activations stay in float32.
        rounded: the same with the cost of rounding activations, for a file that rounds them: a
            value on the edge may go either way, and everything behind it follows. It is used only
            if float32 rounding does not explain the engine's answer.
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
    """Judges the engine's answers.

    Args:
        answers: from ``backends.litert_lm.ask``.
        wanted: the expected answers.
        session: the same file in the LiteRT interpreter.
        floors: how far the logits of two correct runs of the file may be apart.
        steps: requested tokens of the continuation.
        leg: what is judged.

    Returns:
        The leg, one tap per check, and one finding for each check that is not a plain pass.
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
