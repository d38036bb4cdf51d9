"""How questions are asked: edges, profiles, seeds, and the search for a shorter failure."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from edgeverify.core.errors import ArtifactError
from edgeverify.core.results import FAIL, NOT_APPLICABLE, PASS, UNCHECKED
from edgeverify.legs.selectors import PROFILES
from edgeverify.suites.invariants import drive
from edgeverify.suites.invariants.drive import Question, examine
from edgeverify.suites.invariants.model import (
    CannotCheckError,
    Facts,
    Invariant,
    NotApplicableError,
    Violation,
)

FACTS = Facts("made up", 2, 100, 64, (8, 16), (None, 4))
Holds = Any


def question(holds: Holds, edges: tuple[dict[str, int], ...] = (), seed: int = 0) -> Question:
    arguments = st.fixed_dictionaries({"n": st.integers(0, 1000)})
    invariant = Invariant("made.up", holds, lambda _: arguments, lambda _: edges)
    return Question(invariant, "reauthored", None, FACTS, seed)


def test_the_profiles_are_those_of_the_option_and_the_nights_are_long() -> None:
    assert tuple(drive.PROFILES) == PROFILES
    assert drive.PROFILES["nightly"] >= 20 * drive.PROFILES["ci"]


def test_edges_come_first_and_all_cases_count() -> None:
    seen: list[int] = []
    result = examine(question(lambda _, n: seen.append(n), ({"n": 7}, {"n": 3})), profile="ci")
    assert seen[:2] == [7, 3]
    assert result.outcome == PASS
    assert result.examples == len(seen) == 2 + drive.PROFILES["ci"]


def test_the_same_seed_draws_the_same_cases_and_another_draws_others() -> None:
    def drawn(seed: int) -> list[int]:
        seen: list[int] = []
        examine(question(lambda _, n: seen.append(n), seed=seed), profile="ci")
        return seen

    assert drawn(1) == drawn(1) != drawn(2)


def at_most(limit: int) -> Holds:
    def holds(_: Any, n: int) -> None:
        """Numbers are small."""
        if n > limit:
            raise Violation(f"{n} is more than {limit}")

    return holds


@pytest.mark.parametrize("edges", [(), ({"n": 900},)])
def test_a_failure_is_shrunk_also_where_an_edge_failed(edges: tuple[dict[str, int], ...]) -> None:
    result = examine(question(at_most(123), edges), profile="ci")
    assert result.outcome == FAIL
    assert result.arguments == {"n": 124}
    assert result.reason == "124 is more than 123"
    assert result.contract == "Numbers are small."
    assert result.seed == 0


def test_an_edge_that_fails_alone_is_shown_as_it_is() -> None:
    result = examine(question(at_most(1000), ({"n": 2000},)), profile="ci")
    assert (result.outcome, result.arguments) == (FAIL, {"n": 2000})


def test_the_search_ends_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(10**6))
    monkeypatch.setattr(drive.time, "monotonic", lambda: next(seconds))
    asked: list[int] = []

    def holds(_: Any, n: int) -> None:
        asked.append(n)
        raise Violation(f"{n}")

    result = examine(question(holds), profile="ci", budget=2)
    assert result.outcome == FAIL
    assert len(asked) < 10
    assert result.reason == str(result.arguments["n"])


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NotApplicableError("no pads"), NOT_APPLICABLE),
        (CannotCheckError("passes another way"), UNCHECKED),
        (ArtifactError("no file"), UNCHECKED),
    ],
)
def test_what_cannot_be_asked_is_no_pass(error: Exception, outcome: str) -> None:
    def holds(_: Any, n: int) -> None:
        raise error

    result = examine(question(holds), profile="ci")
    assert (result.outcome, result.reason) == (outcome, str(error))


def test_an_invariant_that_can_draw_nothing_is_unchecked() -> None:
    nothing = Invariant("made.up", at_most(1), lambda _: st.nothing())
    result = examine(Question(nothing, "reauthored", None, FACTS), profile="ci")
    assert result.outcome == UNCHECKED
    assert result.reason.startswith("no case could be drawn: ")
