"""Models under examination, quickly: one torch thread, one workshop per port and session."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import edgeverify_models as models
from edgeverify.legs.run import prepare
from edgeverify.legs.selectors import Selectors
from edgeverify.suites.invariants.examination import Examination
from edgeverify_models.port import Port

Examine = Callable[..., Examination]


@pytest.fixture(scope="session")
def under_examination() -> Examine:
    """Makes, or finds, the examination of a port, given by name or as it is."""
    made: dict[str, Examination] = {}

    def examination(port: str | Port, **selectors: object) -> Examination:
        if isinstance(port, str) and port in made and not selectors:
            return made[port]
        chosen = Selectors.of(**{"profile": "ci", **selectors})
        loaded = models.load(port) if isinstance(port, str) else port
        run, _ = prepare(loaded, chosen, verbose=False, progress=None)
        found = Examination(run, loaded.name, chosen)
        if isinstance(port, str) and not selectors:
            made[port] = found
        return found

    return examination
