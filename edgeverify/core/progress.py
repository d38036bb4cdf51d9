"""What a long run tells while it goes on: the name of the stage, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Tells nothing. The command line replaces it by one that draws."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Marks a stage, e.g. ``"convert"``; call what it yields after each of ``total`` parts."""
        del name, total
        yield lambda: None
