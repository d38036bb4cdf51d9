"""Reads and writes amounts in the form that people use: ``8GiB``, ``30d``."""

from __future__ import annotations

import re

from edgeverify.core.errors import UsageError

_BYTES = {"": 1, "b": 1}
_BYTES |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)}
_BYTES |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def bytes_of(where: str, text: str | int) -> int:
    """Reads ``8GiB``, ``512MiB``, ``2.5gb`` or a number of bytes, as bytes.

    Raises:
        UsageError: none of these, or less than one byte.
    """
    number, unit = _parts(str(text))
    size = int(number * _BYTES.get(unit, 0))
    if size < 1:
        raise UsageError(f"got {text!r}", where=where, expected="a size such as 8GiB or 512MiB")
    return size


def seconds_of(where: str, text: str) -> float:
    """Reads ``30d``, ``12h``, ``90m`` or ``45s``, as seconds.

    Raises:
        UsageError: none of these, or below 0.
    """
    number, unit = _parts(text)
    if number < 0 or unit not in _SECONDS:
        raise UsageError(f"got {text!r}", where=where, expected="a time such as 30d or 12h")
    return number * _SECONDS[unit]


def shown(amount: float) -> str:
    """Formats bytes for people: ``512 B``, ``1.5 MiB``, ``12 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.3g} {unit}" if amount < 1000 else f"{amount:.0f} {unit}"
        amount /= 1024
    raise AssertionError(unit)


def _parts(text: str) -> tuple[float, str]:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    return (float(found[1]), found[2].lower()) if found else (-1.0, "?")
