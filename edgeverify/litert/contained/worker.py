"""The child's side: ``python -m edgeverify.litert.contained.worker BYTES``.

It reads requests from standard input and answers on the original standard output. The output of
libraries goes to standard error. The modules of a task are imported when the task is first
requested.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

from edgeverify.core.errors import EdgeVerifyError

# The host kills a late child; this is for a child whose host is gone.
GRACE_SECONDS = 5


def main(memory: int) -> None:
    """Answers requests until the host closes the pipe.

    Args:
        memory: bytes that may be allocated; 0 for no limit.
    """
    _bound(memory)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        _answer(json.loads(line), answers)


def _bound(memory: int) -> None:
    """Limits the allocated memory, and keeps a crash from writing the memory to disk."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory:
        # Only allocations: a limit on the address space would count the mapped files.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        bound = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


def _answer(request: dict[str, Any], answers: TextIO) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(int(request["seconds"]) + GRACE_SECONDS)
    try:
        module, _, name = request["task"].partition(":")
        task = getattr(importlib.import_module(module), name)
        answer = {"value": task(Path(request["file"]), **request["arguments"])}
        text = json.dumps(answer)
    except EdgeVerifyError as error:
        text = json.dumps({"error": _parts(error)})
    except MemoryError:
        what = "needs more memory than it may take"
        text = json.dumps({"error": _parts(_unforeseen(what))})
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(frame.filename).name}:{frame.lineno}"
        what = f"cannot be handled ({type(error).__name__}: {error}; {at})"
        text = json.dumps({"error": _parts(_unforeseen(what))})
    if hasattr(signal, "alarm"):
        signal.alarm(0)
    answers.write(text + "\n")
    answers.flush()


def _unforeseen(what: str) -> EdgeVerifyError:
    return EdgeVerifyError(
        what,
        expected="a whole file of a kind that is known here",
        fix="if it is not damaged, report it to edgeverify",
    )


def _parts(error: EdgeVerifyError) -> dict[str, Any]:
    return {
        "kind": "ArtifactError" if type(error) is EdgeVerifyError else type(error).__name__,
        "what": error.what,
        "where": error.where,
        "expected": error.expected,
        "fix": error.fix,
    }


if __name__ == "__main__":
    main(int(sys.argv[1]))
