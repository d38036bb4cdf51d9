"""What a second process makes ahead of its use, into the cache.

The converter runs on one core and the quantizer on one, so the reference is run while the model is
converted, and files are quantized while the first ones are scored. The cache is all that the two
processes share: an entry that another process is making is waited for, and one that it failed to
make is made here. So nothing depends on them but time.
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
    """Runs ``work`` in a process of its own, which ends with this block at the latest.

    Args:
        work: a function of a module; what it raises is lost.
        arguments: what can be sent to another process.
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
        return  # who needs the entry makes it, and tells what is wrong


def quantize(path: Path, recipes: Sequence[Recipe], cache: Path | None) -> None:
    """Quantizes a float file by each recipe that can be applied."""
    from edgeverify.litert.quantize import quantized

    for recipe in recipes:
        try:
            quantized(path, recipe, cache=cache)
        except EdgeVerifyError:
            continue
