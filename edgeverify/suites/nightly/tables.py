"""The tables of a matrix file: which keys they may have, and of what kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeverify.core.choices import one_of
from edgeverify.core.errors import UsageError

# Axes of the product, in the order of a case's id.
AXES = ("models", "sizes", "checkpoints", "layouts", "recipes")
# Selectors that a whole table shares.
SHARED = (
    "kernel",
    "prefill",
    "decode_steps",
    "seed",
    "mask_as_input",
    "prefill_logits",
    "prompt",
    "kv_cache_len",
    "trust_remote_code",
)
OPTIONS = ("runtimes", "memory", "time_limit", "name", *SHARED)


def tables_of(found: Mapping[str, Any], name: str, where: str) -> Sequence[Any]:
    """An array of tables, such as ``[[include]]``.

    Raises:
        UsageError: it is none.
    """
    tables = found.get(name, [])
    if not isinstance(tables, list):
        raise UsageError(f"{name} is no list of tables", where=where, expected=f"[[{name}]]")
    return tables


def checked(table: Any, keys: Sequence[str], where: str) -> dict[str, Any]:
    """A table, if its keys are known and their values of the right kind.

    Raises:
        UsageError: it is none, or a key or value is wrong.
    """
    if not isinstance(table, dict):
        raise UsageError("is no table", where=where, expected="keys and values")
    known(table, keys, where)
    for name, value in table.items():
        of_text = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if name in (*AXES, "runtimes") and not (of_text and (value or name == "runtimes")):
            raise UsageError(f"{name} is {value!r}", where=where, expected="a list of text")
        if name in ("memory", "name") and not isinstance(value, str):
            raise UsageError(f"{name} is {value!r}", where=where, expected="text")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "time_limit" and not (number and value > 0):
            raise UsageError(f"{name} is {value!r}", where=where, expected="seconds above 0")
    return table


def known(table: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Refuses keys that nothing reads.

    Raises:
        UsageError: with the nearest that is known.
    """
    for name in table:
        one_of(where, name, keys)
