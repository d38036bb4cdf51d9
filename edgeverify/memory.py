"""How much memory a process has had at most."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory() -> int | None:
    """Bytes of physical memory that this process has had at most; None where it cannot be told.

    ``VmHWM`` of Linux, which begins anew with each program. ``ru_maxrss`` does not: a child that a
    large process starts inherits that process's peak.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return _resource_peak()
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else _resource_peak()


def _resource_peak() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
