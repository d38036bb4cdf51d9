"""How much memory there is."""

from __future__ import annotations

from pathlib import Path

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None  # type: ignore[assignment]


def available_memory() -> int | None:
    """Bytes that can be used without swapping others out, and free swap; None if unknown.

    Not more than this process may allocate, where it has been given a bound.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    facts = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
    free = 1024 * (facts["MemAvailable"] + facts.get("SwapFree", 0))
    bound = resource.getrlimit(resource.RLIMIT_DATA)[0] if resource else -1
    return min(free, bound) if bound >= 0 else free
