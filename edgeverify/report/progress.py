"""Progress bars on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from edgeverify.core.progress import Progress
from edgeverify.core.quiet import terminal


def progress_for(stream: TextIO, *, quiet: bool) -> Progress:
    """Bars on a terminal; nothing with ``quiet`` or where ``stream`` is none."""
    if quiet or not stream.isatty():
        return Progress()
    return TerminalProgress()


class TerminalProgress(Progress):
    """One line for each stage that goes on; they vanish when it ends."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.progress import Progress as Bars

        self._open = 0
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(file=terminal()),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Draws a bar for ``total`` parts, or one that only moves."""
        task = self._bars.add_task(name, total=total)
        if self._open == 0:
            self._bars.start()
        self._open += 1
        try:
            yield lambda: self._bars.advance(task)
        finally:
            self._open -= 1
            if self._open == 0:
                self._bars.stop()
            self._bars.remove_task(task)

    def say(self, text: str) -> None:
        """Prints a line that stays, above the bars."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
