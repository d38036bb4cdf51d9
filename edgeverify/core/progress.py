"""Reports the progress of a long run: the name of the stage, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Reports nothing. The command line replaces it by a class that draws."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Marks a stage, e.g. ``"convert"``; call the yielded function after each of ``total``."""
        del name, total
        yield lambda: None

    def say(self, text: str) -> None:
        """Tells at once what is known before the end, e.g. a verdict whose cause is looked for."""
        del text
