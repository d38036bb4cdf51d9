"""The frame of every verb and pytest item: a suite runs quietly and shows its progress."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

from edgeverify.core.progress import Progress
from edgeverify.core.quiet import without_chatter

Result = TypeVar("Result")
Loud = dict[str, Any]


def framed(
    suite: str,
    work: Callable[[Any, Loud], Result],
    options: argparse.Namespace | None = None,
) -> Result:
    """Imports a suite and works with it, while the libraries' chatter is captured.

    Args:
        suite: the module's name. It is imported here because importing it makes libraries write.
        work: gets the module, and ``verbose`` and ``progress`` as its functions take them.
        options: of the command line, with ``verbose`` and ``quiet``; None is silent.

    Raises:
        EdgeVerifyError: bad input.
    """
    verbose = options is not None and options.verbose
    progress = Progress()
    if options is not None:
        from edgeverify.report.progress import progress_for

        # It draws on the terminal, which is out of reach while chatter is captured.
        progress = progress_for(sys.stderr, quiet=options.quiet or options.verbose)

    def run() -> Result:
        module: ModuleType = import_module(suite)
        # The libraries' half a million objects live as long as the process: a collection that
        # looks through them takes half a second.
        gc.freeze()
        return work(module, {"verbose": verbose, "progress": progress})

    return without_chatter(run, enabled=not verbose)
