"""Inspects and runs damaged files in a contained child, and records each outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.damaging.damage import Damage, write
from edgeverify.core.errors import EdgeVerifyError
from edgeverify.litert.contained.child import Child, EndedError

INSPECT = "edgeverify.litert.inspect:inspect"
RUN = "benchmarks.damaging.running:run_signatures"
KERNELS = ("xnnpack", "builtin")
# A tiny file is read and run in 0.2 s.
SECONDS = 20.0
VERDICT, ERROR = "verdict", "error"


@dataclass(frozen=True)
class Trial:
    """One damaged file and one task that was done with it.

    Attributes:
        file: the file that was damaged.
        damage: how it was damaged.
        task: ``inspect``, or the kernels that ran it.
        outcome: ``verdict`` (it was read or run), ``error``, ``crash``, ``hang`` or ``exit``; the
            last three happened to the child.
        message: the error's.
    """

    file: str
    damage: Damage
    task: str
    outcome: str
    message: str = ""


def try_files(
    files: Sequence[Path],
    damages: Sequence[Damage],
    *,
    seconds: float = SECONDS,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[Trial]:
    """Damages files in turn; a child inspects and runs each.

    Args:
        files: .tflite and .litertlm files.
        damages: the first is done to the first file, the second to the second, and so on.
        seconds: the time after which a child is ended.
        tick: called after each damaged file.

    Yields:
        A trial for each task.
    """
    with TemporaryDirectory() as folder, Child() as child:
        for index, damage in enumerate(damages):
            source = files[index % len(files)]
            target = Path(folder) / f"damaged{source.suffix}"
            write(damage, source, target)
            yield _trial(source, damage, "inspect", child, INSPECT, target, seconds)
            for kernel in KERNELS:
                yield _trial(source, damage, kernel, child, RUN, target, seconds, kernel=kernel)
            tick()


def _trial(
    source: Path,
    damage: Damage,
    name: str,
    child: Child,
    task: str,
    target: Path,
    seconds: float,
    **arguments: Any,
) -> Trial:
    try:
        child.call(task, target, seconds=seconds, **arguments)
    except EndedError as error:
        return Trial(source.name, damage, name, error.how, str(error))
    except EdgeVerifyError as error:
        return Trial(source.name, damage, name, ERROR, str(error))
    return Trial(source.name, damage, name, VERDICT)
