"""The host's side: starts the child, sends it requests, and reports how it ended.

Requests and answers are lines of JSON, through pipes. Arrays go through trace files, whose paths
the caller supplies. Nothing is unpickled, because the output of a crashing process must not be
executed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from edgeverify.core import errors
from edgeverify.core.errors import ArtifactError, EdgeVerifyError
from edgeverify.core.memory import available_memory

# The time limit of one call, unless the caller sets one. Reading the tables of a file of 540 MB
# takes 1 s.
SECONDS = 60.0
# The share of the available memory that a child may use: the host must survive.
MEMORY_SHARE = 0.75
TOLD = 200  # characters of the child's last output


class EndedError(ArtifactError):
    """Raised for a file that ended the process which worked on it.

    Attributes:
        how: ``crash``, ``hang`` or ``exit``.
        status: the signal of a crash, the exit status of an exit, 0 for a hang.
    """

    def __init__(self, how: str, status: int, what: str, file: Path) -> None:
        self.how, self.status = how, status
        super().__init__(
            what,
            where=file,
            expected="a file that can be read and run",
            fix="the file is damaged, or the runtime has a fault: get or convert the file again",
        )


class Child:
    """A process that works on files; it starts at the first call and again after a crash.

    Attributes:
        memory: bytes that it may allocate, if the platform can enforce a limit; if None, a share of
            the available memory.
        started: how many processes have been started so far.
    """

    def __init__(self, *, memory: int | None = None) -> None:
        self.memory = memory
        self.started = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._heard = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def call(
        self,
        task: str,
        file: Path,
        *,
        seconds: float = SECONDS,
        shown: Path | None = None,
        **arguments: Any,
    ) -> Any:
        """Runs ``task(file, **arguments)`` in the child and returns its result.

        Args:
            task: ``package.module:function``; only the child imports it.
            file: the file that the task works on.
            seconds: the time after which the child is killed.
            shown: named in errors instead of ``file``, if that is a copy.
            arguments: JSON values, and paths.

        Raises:
            EndedError: the child crashed, did not finish in time, or exited.
            ArtifactError: the child ran out of memory, or the task raised an exception that is not
                an ``EdgeVerifyError``.
            EdgeVerifyError: the task raised it; its parts are the same.
        """
        process, shown = self._running(), shown or file
        self._heard = self._said.seek(0, os.SEEK_END) if self._said else 0
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"task": task, "file": file, "seconds": seconds, "arguments": arguments}
        late = threading.Event()
        timer = threading.Timer(seconds, self._end, [process, late])
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(request, default=os.fspath).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:  # interrupted: the answer of this call must not meet the next one
            self.close()
            raise
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            raise self._ended(process, shown, seconds, late.is_set())
        if late.is_set():  # it answered at the moment it was killed
            self.close()
        answer = json.loads(line)
        if "error" in answer:
            raise _error(answer["error"], file, shown)
        return answer["value"]

    def close(self) -> None:
        """Ends the child."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        if self._said is not None:
            self._said.close()
            self._said = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self.started += 1
        memory = self.memory or int((available_memory() or 0) * MEMORY_SHARE)
        # It lives as long as the child, not as long as this call.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgeverify.litert.contained.worker", str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            # The child must import the same edgeverify as this process, from wherever it is.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        return self._process

    @staticmethod
    def _end(process: subprocess.Popen[bytes], late: threading.Event) -> None:
        late.set()
        process.kill()

    def _ended(
        self, process: subprocess.Popen[bytes], file: Path, seconds: float, late: bool
    ) -> EndedError:
        status = process.wait()
        said = self._last_line()
        self.close()
        if late or status == -signal.SIGALRM:
            what = f"did not finish within {seconds:g} s, and its process was ended"
            return EndedError("hang", 0, what, file)
        if status < 0:
            what = f"crashed the process that opened it ({_signal_name(-status)}{said})"
            return EndedError("crash", -status, what, file)
        what = f"ended the process that opened it, with status {status}{said}"
        return EndedError("exit", status, what, file)

    def _last_line(self) -> str:
        """Returns the child's last output in this call, except for its output about sound files."""
        if self._said is None:
            return ""
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(self._heard, size - 20 * TOLD))
        lines = self._said.read().decode(errors="replace").split("\n")
        told = [line.strip() for line in lines if line.strip() and not line.startswith("INFO")]
        return f": {told[-1][:TOLD]}" if told else ""


def call(task: str, file: Path, *, seconds: float = SECONDS, **arguments: Any) -> Any:
    """Makes one call in a new child: see ``Child.call``."""
    with Child() as child:
        return child.call(task, file, seconds=seconds, **arguments)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _error(told: dict[str, Any], file: Path, shown: Path) -> EdgeVerifyError:
    kind = getattr(errors, told["kind"], ArtifactError)
    where = told["where"]
    return kind(
        told["what"],
        where=shown if where in (None, str(file)) else where,
        expected=told["expected"],
        fix=told["fix"],
    )
