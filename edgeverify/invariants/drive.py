"""Asks subjects for invariants: edges first, then what Hypothesis draws, shrunk where it fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis

from edgeverify.errors import ArtifactError, PortError
from edgeverify.invariants.machine import MACHINE, explore
from edgeverify.invariants.model import Arguments, Invariant, NotApplicableError, Violation
from edgeverify.report.model import FAIL, NOT_APPLICABLE, PASS, UNCHECKED, InvariantResult

# Drawn examples per invariant and implementation.
PROFILES = {"dev": 10, "ci": 6, "nightly": 200}
# Steps of one run of the state machine: a cache of 96 rows is full after 5 to 8 of them.
MACHINE_STEPS = 10
# Searching for a shorter failure than the one at hand.
SEARCH_EXAMPLES = 100
SEARCH_SECONDS = 20.0


@dataclass
class _Asked:
    """What was asked for so far. Once something failed, a clock runs for the search for less."""

    ask: Callable[[Arguments], None]
    budget: float = SEARCH_SECONDS
    count: int = 0
    deadline: float | None = None

    def __post_init__(self) -> None:
        self.failures: dict[str, Violation] = {}
        self.last: tuple[Arguments, Violation] | None = None

    def __call__(self, arguments: Arguments) -> None:
        known = self.failures.get(repr(arguments))
        if known is None:
            if self.deadline is not None and time.monotonic() > self.deadline:
                return  # anything else counts as passed now, so that the search comes to its end
            self.count += 1
            try:
                self.ask(arguments)
            except Violation as violation:
                known = self.failures[repr(arguments)] = violation
                self.deadline = self.deadline or time.monotonic() + self.budget
        if known is not None:
            self.last = (arguments, known)
            raise known


def examine(
    invariant: Invariant,
    subject: Any,
    *,
    profile: str = "dev",
    seed: int = 0,
    budget: float = SEARCH_SECONDS,
) -> InvariantResult:
    """Asks a subject for one invariant.

    Args:
        invariant: the contract.
        subject: a ``Subject``, or a rotation for the invariants of RoPE.
        profile: how many examples are drawn: ``dev``, ``ci`` or ``nightly``.
        seed: of the drawing.
        budget: seconds spent on finding a shorter failure.

    Returns:
        The result. A violation carries the shortest arguments that were found to fail.
    """
    if invariant is MACHINE:
        return _examine_machine(subject, profile, seed, budget)
    asked = _Asked(lambda arguments: invariant.holds(subject, **arguments), budget)
    try:
        for arguments in invariant.edges(subject.facts):
            asked(arguments)
        _search(asked, invariant, subject, PROFILES[profile], seed)
    except Violation as violation:
        # An edge that fails is not shrunk; a search finds a shorter case where there is one.
        found = asked.last
        try:
            _search(asked, invariant, subject, SEARCH_EXAMPLES, seed)
        except Violation:
            found = asked.last
        arguments, violation = found or ({}, violation)
        return _failed(invariant, subject, asked.count, arguments, violation, seed)
    except (NotApplicableError, ArtifactError, PortError) as error:
        return _not_run(invariant, subject, error)
    return _held(invariant, subject, asked.count)


def _search(asked: _Asked, invariant: Invariant, subject: Any, examples: int, seed: int) -> None:
    @hypothesis.seed(seed)
    @_settings(examples)
    @hypothesis.given(invariant.arguments(subject.facts))
    def drawn(arguments: Arguments) -> None:
        asked(arguments)

    drawn()


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


def _examine_machine(subject: Any, profile: str, seed: int, budget: float) -> InvariantResult:
    asked = _Asked(lambda arguments: MACHINE.holds(subject, **arguments), budget)
    try:
        for arguments in MACHINE.edges(subject.facts):
            asked(arguments)
    except Violation as violation:
        return _machine_failed(subject, asked, violation, seed)
    except (NotApplicableError, ArtifactError, PortError) as error:
        return _not_run(MACHINE, subject, error)
    drawn: list[int] = []
    told: dict[str, Any] = {}

    def observe(script: list[Any]) -> None:
        if len(script) == 1:
            drawn.append(1)
        told["script"] = tuple(script)

    settings = _settings(PROFILES[profile], stateful_step_count=MACHINE_STEPS)
    try:
        explore(subject, settings, observe, seed)
    except Violation as violation:
        asked.last = ({"script": told["script"]}, violation)
        return _machine_failed(subject, asked, violation, seed)
    except (ArtifactError, PortError) as error:
        return _not_run(MACHINE, subject, error)
    return _held(MACHINE, subject, asked.count + len(drawn))


def _machine_failed(
    subject: Any, asked: _Asked, violation: Violation, seed: int
) -> InvariantResult:
    arguments, violation = asked.last or ({}, violation)
    return _failed(MACHINE, subject, asked.count, arguments, violation, seed)


def _held(invariant: Invariant, subject: Any, count: int) -> InvariantResult:
    if not count:
        return InvariantResult(
            invariant.name, subject.implementation, UNCHECKED, reason="nothing was asked"
        )
    return InvariantResult(invariant.name, subject.implementation, PASS, count)


def _failed(
    invariant: Invariant,
    subject: Any,
    count: int,
    arguments: Arguments,
    violation: Violation,
    seed: int,
) -> InvariantResult:
    return InvariantResult(
        invariant.name,
        subject.implementation,
        FAIL,
        count,
        reason=str(violation),
        contract=invariant.contract,
        arguments=dict(arguments),
        seed=seed,
    )


def _not_run(invariant: Invariant, subject: Any, error: Exception) -> InvariantResult:
    outcome = NOT_APPLICABLE if isinstance(error, NotApplicableError) else UNCHECKED
    return InvariantResult(invariant.name, subject.implementation, outcome, reason=str(error))
