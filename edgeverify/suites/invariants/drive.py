"""Tests invariants on subjects: edges first, then cases that Hypothesis draws.

Hypothesis shrinks a case that fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import hypothesis
from hypothesis.errors import HypothesisException

from edgeverify.core.errors import ArtifactError, PortError
from edgeverify.core.results import FAIL, NOT_APPLICABLE, PASS, UNCHECKED, InvariantResult
from edgeverify.suites.invariants.machine import MACHINE, explore
from edgeverify.suites.invariants.model import (
    Arguments,
    CannotCheckError,
    Facts,
    Invariant,
    NotApplicableError,
    Violation,
)

# Errors that prevent a test. With the first, the test is not applicable.
NOT_ASKED = (NotApplicableError, CannotCheckError, ArtifactError, PortError)
# Drawn examples per invariant and implementation.
PROFILES = {"dev": 5, "ci": 10, "nightly": 200}
# Steps of one run of the state machine: a cache of 96 rows is full after 5 to 8 of them.
MACHINE_STEPS = 10
# Limits of the search for a shorter failure than the current one.
SEARCH_EXAMPLES = 100
SEARCH_SECONDS = 20.0


@dataclass
class _Asked:
    """The cases tested so far.

    After the first failure, a clock limits the search for a shorter one.
    """

    budget: float
    count: int = 0
    deadline: float | None = None
    failures: dict[str, Violation] = field(default_factory=dict)
    last: tuple[Arguments, Violation] | None = None

    def __call__(self, arguments: Arguments, ask: Callable[[], None]) -> None:
        """Tests the arguments, unless they are known to fail.

        When the time is up, every new case counts as passed, so that the search ends.
        """
        known = self.failures.get(repr(arguments))
        if known is None:
            if self.deadline is not None and time.monotonic() > self.deadline:
                return
            try:
                ask()
            except Violation as violation:
                known = self.failures[repr(arguments)] = violation
                self.deadline = self.deadline or time.monotonic() + self.budget
        if known is not None:
            self.last = (arguments, known)
            raise known


@dataclass(frozen=True)
class Question:
    """One invariant, for one implementation.

    Attributes:
        invariant: the contract.
        implementation: ``reference``, ``reauthored`` or ``tflite-{kernel}``.
        subject: what is tested: see ``Invariant.of``.
        facts: of the model.
        seed: for drawing.
    """

    invariant: Invariant
    implementation: str
    subject: Any
    facts: Facts
    seed: int = 0

    def result(self, outcome: str, **more: Any) -> InvariantResult:
        """A result of this question."""
        return InvariantResult(self.invariant.name, self.implementation, outcome, **more)

    def not_asked(self, error: Exception) -> InvariantResult:
        """The result if the test was impossible or makes no sense."""
        applies = not isinstance(error, NotApplicableError)
        return self.result(UNCHECKED if applies else NOT_APPLICABLE, reason=str(error))


def examine(
    question: Question, *, profile: str = "dev", budget: float = SEARCH_SECONDS
) -> InvariantResult:
    """Tests the invariant of a question and returns the result.

    Args:
        question: the invariant, and what it is tested on.
        profile: how many examples are drawn: ``dev``, ``ci`` or ``nightly``.
        budget: seconds spent on finding a shorter failure.

    Returns:
        The result. A violation has the shortest failing arguments that were found.
    """
    asked = _Asked(budget)
    search = _search_scripts if question.invariant is MACHINE else _search
    try:
        for arguments in question.invariant.edges(question.facts):
            _ask(asked, question, arguments)
        search(asked, question, PROFILES[profile])
    except Violation:
        # An edge that fails is not shrunk; the search then looks for a shorter case.
        with suppress(Violation):
            search(asked, question, SEARCH_EXAMPLES)
        return _failed(asked, question)
    except NOT_ASKED as error:
        return question.not_asked(error)
    except HypothesisException as error:
        told = f"no case could be drawn: {type(error).__name__}: {error}"
        return question.result(UNCHECKED, reason=told)
    return _held(asked, question)


def _ask(asked: _Asked, question: Question, arguments: Arguments) -> None:
    asked.count += 1
    asked(arguments, lambda: question.invariant.holds(question.subject, **arguments))


def _search(asked: _Asked, question: Question, examples: int) -> None:
    @hypothesis.seed(question.seed)
    @_settings(examples)
    @hypothesis.given(question.invariant.arguments(question.facts))
    def drawn(arguments: Arguments) -> None:
        _ask(asked, question, arguments)

    drawn()


def _search_scripts(asked: _Asked, question: Question, examples: int) -> None:
    def perform(script: Sequence[Any], do: Callable[[], None]) -> None:
        asked.count += len(script) == 1
        asked({"script": tuple(script)}, do)

    settings = _settings(examples, stateful_step_count=MACHINE_STEPS)
    explore(question.subject, settings, perform, question.seed)


def _settings(examples: int, **more: Any) -> Any:
    return hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
        **more,
    )


def _held(asked: _Asked, question: Question) -> InvariantResult:
    if not asked.count:
        return question.result(UNCHECKED, reason="nothing was asked")
    seen = getattr(getattr(question.subject, "agreement", None), "seen", {})
    return question.result(
        PASS, examples=asked.count, rms_ratio=seen.get("rms"), row_ratio=seen.get("row")
    )


def _failed(asked: _Asked, question: Question) -> InvariantResult:
    assert asked.last is not None
    arguments, violation = asked.last
    return question.result(
        FAIL,
        examples=asked.count,
        reason=str(violation),
        contract=question.invariant.contract,
        arguments=dict(arguments),
        seed=question.seed,
    )
