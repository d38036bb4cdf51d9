"""A second process that makes cache entries ahead, and what happens when it fails."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from edgeverify.core.store import entries
from edgeverify.suites.quality.prefetch import meanwhile

pytestmark = pytest.mark.slow


def put(root: str, text: str) -> None:
    entries.cached("ahead", "key", ".txt", lambda path: _slowly(path, text), root=Path(root))


def _slowly(path: Path, text: str) -> None:
    time.sleep(1)
    path.write_text(text)


def fail() -> None:
    raise RuntimeError("nobody reads this")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _here(root: Path) -> str:
    entry = entries.cached("ahead", "key", ".txt", lambda p: _slowly(p, "here"), root=root)
    return entry.read_text()


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not list(path.glob("ahead/.key*")) and time.monotonic() < deadline:
        time.sleep(0.02)


def test_what_another_process_is_making_is_waited_for(tmp_path: Path) -> None:
    with meanwhile(put, str(tmp_path), "there"):
        _wait_for(tmp_path)
        assert _here(tmp_path) == "there"


@pytest.mark.parametrize("work", [fail, die])
def test_what_another_process_failed_to_make_is_made_here(work, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with meanwhile(work):
        assert _here(tmp_path) == "here"


def test_it_ends_with_the_block_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    with meanwhile(put, str(tmp_path), "there"):
        _wait_for(tmp_path)
    assert not list(tmp_path.glob("ahead/*.txt"))
    assert _here(tmp_path) == "here"
