"""Prepares cache entries in a second process before they are needed.

The converter and the quantizer each run on one core. The reference is therefore run while the
model is converted, and files are quantized while the first ones are scored. The two processes
share only the cache: one waits for an entry that the other is making, and makes an entry that the
other failed to make. So the second process affects only the time.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeverify.core.errors import EdgeVerifyError
from edgeverify.litert.recipes import Recipe


@contextmanager
def meanwhile(work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Runs ``work`` in its own process, which ends with this block at the latest.

    Args:
        work: a function of a module; its exceptions are lost.
        arguments: must be picklable, because they are sent to the other process.
    """
    process = multiprocessing.get_context("spawn").Process(
        target=_quietly, args=(work, *arguments), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _quietly(work: Callable[..., None], *arguments: Any) -> None:
    from edgeverify.core.quiet import hush

    hush()
    try:
        work(*arguments)
    except Exception:
        return  # whoever needs the entry makes it, and reports what is wrong


def quantize(path: Path, recipes: Sequence[Recipe], cache: Path | None) -> None:
    """Quantizes a float file by each recipe that can be applied."""
    from edgeverify.litert.quantize import quantized

    for recipe in recipes:
        try:
            quantized(path, recipe, cache=cache)
        except EdgeVerifyError:
            continue
