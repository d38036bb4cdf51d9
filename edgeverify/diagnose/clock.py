"""Limits the time of a diagnosis, which only explains a verdict that stands without it."""

from __future__ import annotations

import math
import time

# Seconds that a search may always take. A check that takes longer itself gives it twice its own
# time, because every repair that is tried costs as much as a part of the check.
ALWAYS = 30.0
TIMES_THE_CHECK = 2.0


class Clock:
    """Runs from its making on.

    Attributes:
        seconds: after which the time is up.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self._start = time.monotonic()

    @classmethod
    def of_check(cls, seconds: float) -> Clock:
        """The clock of a diagnosis that follows a check of so many seconds."""
        return cls(max(ALWAYS, TIMES_THE_CHECK * seconds))

    def is_up(self) -> bool:
        return time.monotonic() - self._start > self.seconds
