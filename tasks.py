"""The few things one does here, by name: ``python -m tasks NAME``.

It is plain Python, not nox: one environment of several GB, that of ``CONTRIBUTING.md``, serves all
of them, where nox would make one for each. It is not a verb of ``edgeverify``, because it concerns
this repository alone and is not installed.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent
QUICK = "not slow and not oracle and not real and not exhaustive"
JUNIT = ".pytest_cache/exhaustive.xml"
# More workers than two only compete: torch uses all cores in each. "worksteal" gives each worker a
# row of neighbouring tests, so that a module's fixtures are made once, and leaves none idle.
TWO_WORKERS = ("-n", "2", "--dist", "worksteal")


@dataclass(frozen=True)
class Task:
    """What a name stands for: a text for ``--list``, and commands.

    Attributes:
        commands: arguments of Python, one tuple a command; all are run, even after a failure.
            Further arguments of the command line go to the last one.
    """

    text: str
    commands: tuple[tuple[str, ...], ...]


EDGEVERIFY = ("-m", "edgeverify.cli.main")
TASKS = {
    "quick": Task("the quick tests", (("-m", "pytest", *TWO_WORKERS, "-m", QUICK),)),
    "all": Task(
        "all tests but the exhaustive ones, long ones first",
        (("-m", "pytest", *TWO_WORKERS, "-m", "not exhaustive", "--durations=40"),),
    ),
    "exhaustive": Task(
        "the rows of all matrices that are not run every time, and what they gave is kept",
        (
            ("-m", "pytest", *TWO_WORKERS, "-m", "exhaustive", f"--junit-xml={JUNIT}"),
            ("-m", "tests.matrices", JUNIT),
        ),
    ),
    "lint": Task(
        "lint, layout and types",
        (("-m", "ruff", "check"), ("-m", "ruff", "format", "--check"), ("-m", "mypy")),
    ),
    "goldens": Task("compare all ports with golden/", ((*EDGEVERIFY, "golden"),)),
    "selftest": Task(
        "try the checks on every fault, and write what they find",
        ((*EDGEVERIFY, "selftest", "--markdown", "docs/selftest.md"),),
    ),
    "calibrate": Task(
        "measure clean runs again, and derive the thresholds",
        (("-m", "edgeverify.suites.calibrate"),),
    ),
}


def run(task: Task, further: Sequence[str]) -> int:
    """Runs a task's commands; returns the first exit status that is not 0."""
    statuses = []
    for number, command in enumerate(task.commands, start=1):
        last = further if number == len(task.commands) else ()
        print("$ python", shlex.join([*command, *last]), flush=True)
        statuses.append(subprocess.call([sys.executable, *command, *last], cwd=ROOT))
    return next(filter(None, statuses), 0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks", description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="show the tasks and their commands")
    parser.add_argument("task", nargs="?", choices=TASKS, metavar="NAME", help=", ".join(TASKS))
    arguments, further = parser.parse_known_args(argv)
    if arguments.task:
        return run(TASKS[arguments.task], further)
    if not arguments.list:
        parser.error("name a task; --list shows them")
    for name, task in TASKS.items():
        print(f"{name:10} {task.text}")
        for command in task.commands:
            print(f"{'':10} $ python {shlex.join(command)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
