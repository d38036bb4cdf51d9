"""The peak of memory is a process's own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgeverify.core import memory

LARGE = 200 * 2**20


def test_the_peak_grows_with_what_is_used_and_does_not_shrink() -> None:
    script = (
        "from edgeverify.core.memory import peak_memory\n"
        "before = peak_memory()\n"
        f"held = bytearray({LARGE})\n"
        "within = peak_memory()\n"
        "del held\n"
        "print(before, within, peak_memory())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    before, within, after = map(int, done.stdout.split())
    assert within - before > 0.9 * LARGE
    assert after > 0.99 * within  # the kernel counts pages in batches


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_child_does_not_inherit_its_parents_peak() -> None:
    held = bytearray(LARGE)
    script = "from edgeverify.core.memory import peak_memory; print(peak_memory())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < LARGE
    assert (memory.peak_memory() or 0) > len(held)
