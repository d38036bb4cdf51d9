"""Silences libraries that write to the terminal from native code.

The converter, TensorFlow and absl write to file descriptors 1 and 2 directly, so replacing
``sys.stdout`` is not enough. Their output is captured, and shown if the work fails.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO, TypeVar

from edgeverify.core.errors import PortError

# Enough for a traceback of the converter, whose dump of a failed module can be hundreds of MB.
SHOWN_BYTES = 20_000


def terminal() -> TextIO:
    """Opens a text stream on the real standard error, which ``quiet`` does not capture.

    A progress bar that is drawn while a library is silenced writes to this stream.
    """
    return os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")


@contextmanager
def quiet(enabled: bool = True, *, show: bool = True) -> Iterator[None]:
    """Captures file descriptors 1 and 2; shows the end of the capture if an exception passes.

    Args:
        enabled: False makes this do nothing.
        show: False hides the capture even then, for an exception that says all there is to know.
    """
    if not enabled:
        yield
        return
    _flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as capture:
        try:
            os.dup2(capture.fileno(), 1)
            os.dup2(capture.fileno(), 2)
            # sys.stdout may not write to descriptor 1: test runners and notebooks replace it.
            with (
                os.fdopen(os.dup(capture.fileno()), "w", buffering=1, errors="replace") as text,
                redirect_stdout(text),
                redirect_stderr(text),
            ):
                yield
        except Exception:
            _flush()
            if show:
                _show(capture.fileno(), saved[1])
            raise
        finally:
            _flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def _show(capture: int, stderr: int) -> None:
    size = os.fstat(capture).st_size
    start = max(0, size - SHOWN_BYTES)
    os.write(stderr, os.pread(capture, size - start, start))


Outcome = TypeVar("Outcome")


# Silences TensorFlow, XNNPACK, absl, transformers and the hub on import and in use.
QUIET_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "GLOG_minloglevel": "3",
    "ABSL_MIN_LOG_LEVEL": "3",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def hush() -> None:
    """Silences a worker process for good: it returns its results and prints nothing."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("torchao").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def without_chatter(run: Callable[[], Outcome], *, enabled: bool = True) -> Outcome:
    """Runs a function with the libraries' warnings and terminal output switched off."""
    if enabled:
        for name, value in QUIET_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # On import, torchao warns about each of its libraries that is built for another machine.
        logging.getLogger("torchao").setLevel(logging.ERROR)
    error: Exception | None = None
    with warnings.catch_warnings(), quiet(enabled):
        if enabled and not sys.warnoptions:
            warnings.simplefilter("ignore")
        try:
            return run()
        except SystemExit as raised:
            # SystemExit would end the check with the port's own status: 0 would be read as a pass.
            error = PortError(
                f"called sys.exit({raised.code!r}) while it ran",
                where="the port",
                expected="a port that raises where it cannot go on",
                fix="take the call out of its code",
            )
        except Exception as raised:
            # Raised inside ``quiet``, it would show the chatter; bad input is reported in one line.
            error = raised
    raise error
