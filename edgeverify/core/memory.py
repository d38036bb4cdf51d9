"""Measures the available memory and the peak memory of a process."""

from __future__ import annotations

import re
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None  # type: ignore[assignment]

# What native code and the dynamic linker print before they give up on an allocation.
_REFUSED = re.compile("bad_alloc|out of memory|cannot allocate memory|failed to map segment", re.I)


def tells_out_of_memory(text: str) -> bool:
    """Checks whether a message reports an allocation that was refused."""
    return _REFUSED.search(text) is not None


def available_memory() -> int | None:
    """Returns the bytes usable without swapping others out, plus free swap; None if unknown.

    The result is at most what this process may allocate, if it has a limit.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    facts = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
    free = 1024 * (facts["MemAvailable"] + facts.get("SwapFree", 0))
    bound = resource.getrlimit(resource.RLIMIT_DATA)[0] if resource else -1
    return min(free, bound) if bound >= 0 else free


def resident_memory() -> int | None:
    """Returns the bytes of physical memory that this process has now; None if unknown."""
    return _status("VmRSS")


def peak_memory() -> int | None:
    """Returns the most bytes of physical memory that this process has had; None if unknown.

    Reads Linux's ``VmHWM``, which starts anew with each program. ``ru_maxrss`` does not: a child
    process that a large process starts inherits its parent's peak.
    """
    peak = _status("VmHWM")
    return _resource_peak() if peak is None else peak


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(found[0]) if found else None


def _resource_peak() -> int | None:
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
