from __future__ import annotations

import io
import os
import pty
import select
import sys
import time
from pathlib import Path

import pytest

from edgeverify.core.progress import Progress
from edgeverify.report.progress import TerminalProgress, progress_for


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _read_until(descriptor: int, text: str, *, seconds: float) -> str:
    """What a terminal shows; the kernel hands it over in pieces, and not at once."""
    drawn = b""
    deadline = time.monotonic() + seconds
    while text.encode() not in drawn and time.monotonic() < deadline:
        if select.select([descriptor], [], [], 0.1)[0]:
            drawn += os.read(descriptor, 100_000)
    return drawn.decode(errors="replace")


def test_nothing_is_drawn_into_a_pipe_or_with_quiet() -> None:
    assert type(progress_for(io.StringIO(), quiet=False)) is Progress
    assert type(progress_for(Terminal(), quiet=True)) is Progress
    assert type(progress_for(Terminal(), quiet=False)) is TerminalProgress


def test_bars_reach_the_terminal_while_file_descriptors_are_silenced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        os.dup2(slave, 2)
        progress = TerminalProgress()
        with (tmp_path / "chatter").open("w") as chatter:
            os.dup2(chatter.fileno(), 2)
            with progress.stage("convert"):
                pass
            with progress.stage("run .tflite", 2) as tick:
                tick()
                progress.say("FAIL  authoring: 3 of [9] taps differ")
                tick()
        drawn = _read_until(master, "2/2", seconds=10)
    finally:
        os.dup2(saved, 2)
        for descriptor in (saved, master, slave):
            os.close(descriptor)
    assert "convert" in drawn
    assert "run .tflite" in drawn
    assert "2/2" in drawn
    assert "FAIL  authoring: 3 of [9] taps differ" in drawn
    assert (tmp_path / "chatter").read_text() == ""


def test_a_stage_ends_when_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = TerminalProgress()
    with pytest.raises(ValueError, match="x"), progress.stage("a"):
        raise ValueError("x")
    with progress.stage("b", 1) as tick:
        tick()
