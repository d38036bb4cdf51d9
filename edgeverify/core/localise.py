"""Judges every tap on right inputs, to separate several faulty sublayers of one block.

A tap is a source of an error if it differs while its inputs agree. In the block-by-block run,
everything after the first faulty sublayer of a block differs. So if a leg fails, one more run
records every tap and then replaces it by the oracle's value. The value of a tap then depends only
on the oracle's values of the taps before it, not on anything that went wrong there.

The taps are compared with the floor of the block-by-block run. There, errors add up from the
block's input; here, only from the tap before. So this floor allows enough.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from edgeverify.core import taps
from edgeverify.core.compare import compare, thresholds
from edgeverify.core.judge import Baseline
from edgeverify.core.results import FAIL, UNCHECKED
from edgeverify.core.trace import Trace

# The taps of a block that each tap is computed from, besides the block's input.
INPUTS: Mapping[str, tuple[str, ...]] = {
    "attn_norm": (),
    "attn.q": ("attn_norm",),
    "attn.k": ("attn_norm",),
    "attn.v": ("attn_norm",),
    "attn.out": ("attn.q", "attn.k", "attn.v"),
    "ff_norm": ("attn.out",),
    "ff.out": ("ff_norm",),
    "out": ("attn.out", "ff.out"),
}


def inputs_of(tap: str, num_blocks: int) -> tuple[str, ...]:
    """Returns the taps that ``tap`` is computed from, all of which are to be fed."""
    index = taps.block_index(tap)
    if tap == taps.EMBED:
        return ()
    if index is None:
        last = taps.block(num_blocks - 1, "out")
        return (last,) if tap == taps.FINAL_NORM else (last, taps.FINAL_NORM)
    if tap.startswith("kv."):
        return (taps.block(index, f"attn.{tap[-1]}"),)
    entry = taps.block(index - 1, "out") if index else taps.EMBED
    leaf = tap.split(".", 2)[2]
    return (entry, *(taps.block(index, name) for name in INPUTS[leaf]))


def forget_unfed(trace: Trace, step: str, num_blocks: int, fed: Collection[str]) -> None:
    """Removes the taps of a step that were computed from an input that was not fed."""
    for tap in taps.standard_taps(num_blocks):
        key = f"{step}/{tap}"
        missing = [name for name in inputs_of(tap, num_blocks) if name not in fed]
        if missing and key in trace:
            del trace.arrays[key]
            trace.unavailable[key] = f"not possible: {missing[0]} could not be fed"


def named_alone(
    named: Sequence[str],
    fed: Trace,
    baseline: Baseline,
    expected: Sequence[str],
    starts: Mapping[str, int],
) -> tuple[str, ...]:
    """Returns every faulty tap, without its step, in forward order.

    Args:
        named: the taps that the block-by-block run names: the first failing tap of each faulty
            block. They are used for blocks in which a tap could not be judged here, or in which no
            tap fails.
        fed: the run in which every tap was fed.
        baseline, expected, starts: as for ``judge.judge_leg``.
    """
    results = compare(
        fed, baseline.oracle, baseline.isolated_floor, thresholds("isolated"), expected, starts
    )
    failed = [taps.split(result.tap) for result in results if result.outcome == FAIL]
    # The cache is written and read in one step: it cannot be fed in between.
    cache = {(step, taps.block_index(tap)) for step, tap in failed if tap.startswith("kv.")}
    sources = {
        tap
        for step, tap in failed
        if not (tap.endswith(".attn.out") and (step, taps.block_index(tap)) in cache)
    }
    unjudged = {_part(taps.split(r.tap)[1]) for r in results if r.outcome == UNCHECKED}
    covered = {_part(tap) for tap in sources} - unjudged
    kept = {tap for tap in sources if _part(tap) in covered}
    kept |= {tap for tap in named if _part(tap) not in covered}
    return _in_order(kept)


def _part(tap: str) -> str:
    index = taps.block_index(tap)
    if index is not None:
        return str(index)
    return tap if tap == taps.EMBED else "head"


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sorts taps in forward order; a cache comes right after the tap that is written to it."""

    def place(tap: str) -> tuple[int, int]:
        index = taps.block_index(tap)
        if index is None:
            return (-1, 0) if tap == taps.EMBED else (2**31, int(tap == taps.LOGITS))
        leaf = f"attn.{tap[-1]}" if tap.startswith("kv.") else tap.split(".", 2)[2]
        return index, 2 * taps.BLOCK_TAPS.index(leaf) + tap.startswith("kv.")

    return tuple(sorted(names, key=place))
