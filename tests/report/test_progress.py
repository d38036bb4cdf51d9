from __future__ import annotations

import io
import os
import pty
import sys
from pathlib import Path

import pytest

from edgeverify.progress import Progress
from edgeverify.report.progress import TerminalProgress, progress_for


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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
                tick()
        os.set_blocking(master, False)
        drawn = os.read(master, 100_000).decode()
    finally:
        os.dup2(saved, 2)
        for descriptor in (saved, master, slave):
            os.close(descriptor)
    assert "convert" in drawn
    assert "run .tflite" in drawn
    assert "2/2" in drawn
    assert (tmp_path / "chatter").read_text() == ""


def test_a_stage_ends_when_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = TerminalProgress()
    with pytest.raises(ValueError, match="x"), progress.stage("a"):
        raise ValueError("x")
    with progress.stage("b", 1) as tick:
        tick()
