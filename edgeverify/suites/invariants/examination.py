"""Tests all invariants of one model on all of its implementations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from edgeverify.core.quiet import without_chatter
from edgeverify.core.results import FAIL, InvariantResult
from edgeverify.legs.ports import load_port
from edgeverify.legs.run import Run, fitting_threads
from edgeverify.legs.selectors import Selectors
from edgeverify.suites.invariants import INVARIANTS
from edgeverify.suites.invariants.drive import NOT_ASKED, Question, examine
from edgeverify.suites.invariants.model import Arguments
from edgeverify.suites.invariants.pairs import cells
from edgeverify.suites.invariants.subjects import Workshop


@dataclass
class Examination:
    """One model under test.

    Attributes:
        run: what is run.
        model: the name that the user gave.
        chosen: what was selected.
    """

    run: Run
    model: str
    chosen: Selectors = field(default_factory=Selectors)

    def __post_init__(self) -> None:
        self.run.state()  # every variant of the run shares it
        with fitting_threads(self.run):
            import torch

            # A batch needs one more conversion for a single invariant, so it is tested only every
            # night.
            batch = 2 if self.chosen.profile == "nightly" else 1
            self._workshop = Workshop(self.run, torch.get_num_threads(), batch)

    def all(self) -> Iterator[InvariantResult]:
        """Yields every invariant on every implementation, one implementation after another."""
        pairs = cells(self.chosen)
        with self.run.timed("invariants", len(pairs)) as tick:
            for invariant, implementation in pairs:
                yield self.examine(invariant, implementation)
                tick()

    def examine(self, name: str, implementation: str) -> InvariantResult:
        """Tests one invariant on one implementation; a failure includes its reproduction."""
        workshop, invariant = self._workshop, INVARIANTS[name]
        question = Question(invariant, implementation, None, workshop.facts, self.chosen.seed)
        with fitting_threads(self.run):
            try:
                subject = workshop.asked(invariant, implementation)
            except NOT_ASKED as error:
                return question.not_asked(error)
            result = examine(replace(question, subject=subject), profile=self.chosen.profile)
        if result.outcome != FAIL:
            return result
        return replace(result, reproduction=reproduction(result, self.model, self.chosen))

    def ask(self, name: str, implementation: str, arguments: Arguments) -> None:
        """Tests once, with given arguments.

        Raises:
            Violation: it does not hold.
        """
        with fitting_threads(self.run):
            invariant = INVARIANTS[name]
            invariant.holds(self._workshop.asked(invariant, implementation), **arguments)


def reproduction(result: InvariantResult, model: str, chosen: Selectors) -> str:
    """Returns a command that tests a failed invariant again with the same arguments."""
    options = "".join(f", {name}={value!r}" for name, value in _not_default(chosen).items())
    arguments = ", ".join(f"{name}={value!r}" for name, value in result.arguments.items())
    return (
        "python - <<'EOF'\n"
        "from edgeverify.suites.invariants import reproduce\n"
        f"reproduce({model!r}, {result.invariant!r}, {result.implementation!r}{options},\n"
        f"          arguments=dict({arguments}))\n"
        "EOF"
    )


def _not_default(chosen: Selectors) -> Mapping[str, Any]:
    left_out = ("backends", "profile", "cache")
    return {
        item.name: getattr(chosen, item.name)
        for item in fields(chosen)
        if item.name not in left_out and getattr(chosen, item.name) != item.default
    }


def examination(model: str, chosen: Selectors) -> Examination:
    """Loads the port and its weights, so that its invariants can be tested one by one.

    Raises:
        EdgeVerifyError: bad input.
    """

    def run() -> Examination:
        from edgeverify.legs.run import prepare

        prepared, _ = prepare(load_port(model), chosen, verbose=False, progress=None)
        return Examination(prepared, model, chosen)

    return without_chatter(run)
