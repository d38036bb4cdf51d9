"""Taps in few words: ``attn.q and attn.k of every block``."""

from __future__ import annotations

import re
from collections.abc import Iterable

FEW = 4  # of a block's 8 taps
_IN_BLOCK = re.compile(r"^(blocks|kv)\.(\d+)\.(.+)$")


def blocks_of(names: Iterable[str]) -> set[int]:
    """The blocks that some taps are in."""
    return {int(found.group(2)) for name in names if (found := _IN_BLOCK.match(name))}


def compact(names: Iterable[str], every: Iterable[int] = ()) -> str:
    """Taps without their steps: those of the same blocks are told together, runs as ``0–3``.

    Args:
        names: e.g. ``blocks.0.attn.q``, ``final_norm``.
        every: all blocks of the model, where they are known.
    """
    taps: dict[str, list[int]] = {}
    for name in names:
        found = _IN_BLOCK.match(name)
        if found is None:
            taps.setdefault(name, [])
            continue
        kind, number, rest = found.groups()
        taps.setdefault(rest if kind == "blocks" else f"kv.{rest}", []).append(int(number))
    groups: dict[tuple[int, ...], list[str]] = {}
    for tap, numbers in taps.items():
        groups.setdefault(tuple(sorted(set(numbers))), []).append(tap)
    return ", ".join(_told(tuple(every), numbers, listed) for numbers, listed in groups.items())


def _told(every: tuple[int, ...], numbers: tuple[int, ...], listed: list[str]) -> str:
    if len(listed) > FEW and numbers:
        listed = [f"{len(listed)} taps, {listed[0]} first,"]
    joined = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
    if not numbers:
        return joined
    if len(numbers) > 1 and set(numbers) == set(every):
        return f"{joined} of every block"
    return f"{joined} of block{'s' if len(numbers) > 1 else ''} {ranges(numbers)}"


def ranges(numbers: Iterable[int]) -> str:
    """``0–2, 5``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        str(run[0]) if len(run) == 1 else f"{run[0]}{'–' if len(run) > 2 else ', '}{run[-1]}"
        for run in runs
    )
