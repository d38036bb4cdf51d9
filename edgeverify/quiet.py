"""Silences libraries that write to the terminal from native code.

The converter, TensorFlow and absl write to file descriptors 1 and 2 directly, so replacing
``sys.stdout`` is not enough. What was written is kept, and shown if the work fails.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

# Enough for a traceback of the converter; its dump of a failed module can be hundreds of MB.
SHOWN_BYTES = 20_000


def terminal() -> TextIO:
    """A text stream on the real standard error, which ``quiet`` leaves alone.

    A progress bar that is drawn while a library is silenced has to write here.
    """
    return os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")


@contextmanager
def quiet(enabled: bool = True, *, show: bool = True) -> Iterator[None]:
    """Captures file descriptors 1 and 2; shows the end of the capture if an exception passes.

    Args:
        enabled: False makes this do nothing.
        show: False hides the capture even then, where the exception says all there is to know.
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
            # sys.stdout need not write to descriptor 1: test runners and notebooks replace it.
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
