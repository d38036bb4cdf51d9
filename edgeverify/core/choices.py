"""Checks an option's value and, where it is wrong, suggests the right ones."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from edgeverify.core.errors import UsageError


def one_of(option: str, value: str, choices: Sequence[str]) -> str:
    """Returns ``value`` if it is one of ``choices``.

    Raises:
        UsageError: it is not; gives the nearest choices and all of them.
    """
    if value in choices:
        return value
    raise UsageError(
        f"there is no {value!r}",
        where=option,
        expected=f"one of {', '.join(choices)}",
        fix=did_you_mean(value, choices),
    )


def did_you_mean(value: str, choices: Sequence[str]) -> str | None:
    """Returns ``did you mean 'tinyllama'?``, or None if no choice is similar."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(value.lower(), by_lower, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(repr(by_lower[name]) for name in near)}?" if near else None


def whole_number(
    option: str,
    value: str | None,
    default: int | None,
    *,
    lowest: int = 1,
    highest: int | None = None,
) -> int | None:
    """Reads an option's text as a whole number; returns ``default`` if it was not given.

    Raises:
        UsageError: not a whole number, or out of bounds.
    """
    if value is None:
        return default
    expected = f"a whole number of {lowest} or more"
    if highest is not None:
        expected = f"a whole number from {lowest} to {highest}"
    try:
        number = int(value)
    except ValueError:
        number = lowest - 1
    if number < lowest or (highest is not None and number > highest):
        raise UsageError(f"got {value!r}", where=option, expected=expected)
    return number
