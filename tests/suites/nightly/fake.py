"""Cases that take no time: what a child does instead of a check, by the name of the model."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgeverify.core.errors import CheckpointError, PortError
from edgeverify.suites.nightly.matrix import NightlyCase
from edgeverify.suites.nightly.run import Job

TASK = "tests.suites.nightly.fake:check_case"
LOG = "EDGEVERIFY_TEST_LOG"  # a file to which each case's begin and end are written
PAUSE = "EDGEVERIFY_TEST_PAUSE"  # seconds of a case
MIB = 2**20


def case(name: str, model: str = "good", **fields: Any) -> NightlyCase:
    return NightlyCase(id=name, model=model, **fields)


def job(name: str, model: str = "good", need: int = 64 * MIB, **fields: Any) -> Job:
    return Job(case(name, model, **fields), f"key of {name}", need)


def report(outcome: str = "pass", text: str = "") -> dict[str, Any]:
    leg = {
        "outcome": outcome,
        "reason": text,
        "threshold": {"rms": 1.5, "row": 4.0},
        "worst": {"tap": "prefill.0/logits", "error_ratio": 1.25, "row_ratio": 2.5},
        "first_divergence": None,
        "taps": [],
        "notes": [],
    }
    return {
        "schema": 1,
        "outcome": outcome,
        "case": {"model": "fake"},
        "environment": {"torch": "2.13"},
        "legs": {"authoring": leg, "runtime": {"tf_lite": {"fp16": {**leg, "outcome": "pass"}}}},
        "audits": {},
        "invariants": [],
        "findings": [],
        "timings": {},
    }


def check_case(
    page: Path,
    *,
    model: str,
    selectors: Mapping[str, Any],
    cache: str | None,
    memory: int,
    golden: str | None,
) -> dict[str, Any]:
    """As ``edgeverify.suites.nightly.child.check_case``."""
    note("begin", page.stem)
    time.sleep(float(os.environ.get(PAUSE, "0")))
    answer = answers(model)
    page.write_text("a page")
    note("end", page.stem)
    return {**answer, "seconds": 0.5, "peak_memory": 10 * MIB, "held": 0, "pid": os.getpid()}


def answers(model: str) -> dict[str, Any]:
    if model == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if model == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if model == "native":
        os.write(2, b"  what():  std::bad_alloc\n")
        os.abort()
    if model == "exit":
        os._exit(7)
    if model == "hang":
        time.sleep(60)
    if model == "port":
        raise PortError("has no 'PORT'", where="x.py")
    if model == "input":
        raise CheckpointError("is damaged", where="x.safetensors")
    if model == "error":
        return {"ended": "error", "what": "raised TypeError: no (x.py:3)"}
    if model == "memory":
        return {"ended": "memory", "what": ""}
    if model == "full":
        from edgeverify.core.store import entries

        with entries.full_disk_told(Path("somewhere")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return {"report": report("fail" if model == "bad" else "pass", "it differs")}


def note(what: str, name: str) -> None:
    if path := os.environ.get(LOG):
        with open(path, "a") as file:
            file.write(f"{what} {name} {os.getpid()}\n")


def main() -> int:
    """The command line, with these cases instead of checks."""
    from edgeverify.cli.main import main as edgeverify
    from edgeverify.suites.nightly import command

    command.run_jobs = partial(command.run_jobs, task=TASK)  # type: ignore[assignment]
    return edgeverify(["nightly", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
