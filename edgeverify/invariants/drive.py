"""Asks subjects for invariants: edges first, then what Hypothesis draws, shrunk where it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import hypothesis

from edgeverify.errors import ArtifactError, PortError
from edgeverify.invariants.machine import MACHINE, explore
from edgeverify.invariants.model import Arguments, Invariant, NotApplicableError, Violation
from edgeverify.report.model import FAIL, NOT_APPLICABLE, PASS, UNCHECKED, InvariantResult

# Drawn examples per invariant and implementation.
PROFILES = {"dev": 5, "ci": 10, "nightly": 200}
# Steps of one run of the state machine: a cache of 96 rows is full after 5 to 8 of them.
MACHINE_STEPS = 10
# Searching for a shorter failure than the one at hand.
SEARCH_EXAMPLES = 100
SEARCH_SECONDS = 20.0


@dataclass
class _Asked:
    """What was asked for so far. Once something failed, a clock runs for the search for less."""

    budget: float
    count: int = 0
    deadline: float | None = None
    failures: dict[str, Violation] = field(default_factory=dict)
    last: tuple[Arguments, Violation] | None = None

    def __call__(self, arguments: Arguments, ask: Callable[[], None]) -> None:
        """Asks, unless it is known to fail.

        When the time is up anything new counts as passed, so that the search comes to its end.
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
    asked = _Asked(budget)
    search = _search_scripts if invariant is MACHINE else _search
    try:
        for arguments in invariant.edges(subject.facts):
            _ask(asked, invariant, subject, arguments)
        search(asked, invariant, subject, PROFILES[profile], seed)
    except Violation as violation:
        # An edge that fails is not shrunk; a search finds a shorter case where there is one.
        found = asked.last
        with suppress(Violation):
            search(asked, invariant, subject, SEARCH_EXAMPLES, seed)
        arguments, violation = asked.last or found or ({}, violation)
        return _failed(invariant, subject, asked.count, arguments, violation, seed)
    except (NotApplicableError, ArtifactError, PortError) as error:
        return _not_run(invariant, subject, error)
    return _held(invariant, subject, asked.count)


def _ask(asked: _Asked, invariant: Invariant, subject: Any, arguments: Arguments) -> None:
    asked.count += 1
    asked(arguments, lambda: invariant.holds(subject, **arguments))


def _search(asked: _Asked, invariant: Invariant, subject: Any, examples: int, seed: int) -> None:
    @hypothesis.seed(seed)
    @_settings(examples)
    @hypothesis.given(invariant.arguments(subject.facts))
    def drawn(arguments: Arguments) -> None:
        _ask(asked, invariant, subject, arguments)

    drawn()


def _search_scripts(
    asked: _Asked, invariant: Invariant, subject: Any, examples: int, seed: int
) -> None:
    def perform(script: Sequence[Any], do: Callable[[], None]) -> None:
        asked.count += len(script) == 1
        asked({"script": tuple(script)}, do)

    explore(subject, _settings(examples, stateful_step_count=MACHINE_STEPS), perform, seed)


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


def _held(invariant: Invariant, subject: Any, count: int) -> InvariantResult:
    if not count:
        return InvariantResult(
            invariant.name, subject.implementation, UNCHECKED, reason="nothing was asked"
        )
    seen = getattr(getattr(subject, "agreement", None), "seen", {})
    return InvariantResult(
        invariant.name,
        subject.implementation,
        PASS,
        count,
        rms_ratio=seen.get("rms"),
        row_ratio=seen.get("row"),
    )


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
