"""Models under examination, quickly: one torch thread, one workshop per port and session."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import models
from edgeverify.invariants.examination import Examination
from edgeverify.selectors import Selectors
from edgeverify.verify import prepare
from models.port import Port

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
