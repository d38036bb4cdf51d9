"""Tells another representation of the same function from a fault.

A right port may keep another q, k or v than the reference: positions shifted by a constant (RoPE
acts on differences), heads in another order, a scale moved from one matrix to the next, a norm's
weight folded into the projection behind it. What is in between then differs, and so does the KV
cache, which is a true difference of what is *in* the cache; but nothing that is computed from it
does. Such taps pass, and say so.

A difference is taken for one of representation if all of this holds for the whole leg:

- every tap that fails is an *inner* one (``INNER``), and fails by its values alone; in particular
  every ``attn.out``, ``ff.out``, ``out`` and all logits pass, at every step and block by block;
- it is gross: its ratio is above ``GROSS``. A small difference could be a fault that what follows
  dampens below the limit; a gross one could not;
- a cache that differs is, bit by bit, what was attended with: the rows of the step before and this
  step's own k or v. A row that is written wrongly at the very end reaches nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgeverify.core import taps
from edgeverify.core.results import FAIL, PASS, UNCHECKED, TapResult
from edgeverify.core.trace import Trace

INNER = ("attn_norm", "attn.q", "attn.k", "attn.v", "ff_norm")
# Measured on 282 faults (catalogue × ports) whose first diverging tap is an inner one: the largest
# ratio behind it (attn.out, ff.out, logits) is at least 0.10 times the largest inner one. A fault
# that stays below the limit behind (1.5) is thus below 15 inside; 100 leaves room for 7 times that.
GROSS = 100.0
NOTE = "another representation of the same function"


def excuse(
    results: Sequence[TapResult], candidate: Trace, starts: Mapping[str, int]
) -> tuple[list[TapResult], str]:
    """Lets inner taps pass that differ without any consequence.

    Args:
        results: of a leg, the block-by-block run merged in.
        candidate: the run as a whole.
        starts: step → position of its first token.

    Returns:
        The results, and a note on them; those that were given, and "", if anything is a fault.
    """
    failed = [result for result in results if result.outcome == FAIL]
    # What could not be checked may be the very consequence.
    unchecked = any(result.outcome == UNCHECKED for result in results)
    if not failed or unchecked or not starts or not all(map(_is_gross, failed)):
        return list(results), ""
    caches = {taps.split(r.tap)[1] for r in failed if taps.split(r.tap)[1].startswith("kv.")}
    if not all(_is_what_was_attended(candidate, tap, starts) for tap in caches):
        return list(results), ""
    names = list(dict.fromkeys(_leaf(taps.split(result.tap)[1]) for result in failed))
    told = [
        replace(
            result,
            outcome=PASS,
            isolated_outcome=None if result.isolated_outcome is None else PASS,
            reason=f"{NOTE}: error ratio {_ratio(result):.3g}, and nothing that follows differs",
        )
        if result.outcome == FAIL
        else result
        for result in results
    ]
    inner = [name for name in names if not name.startswith("kv.")]
    if caches:
        inner.append("the KV cache")
    return told, f"{NOTE}: other values in {', '.join(inner)}; the rest agrees"


def _leaf(tap: str) -> str:
    """``blocks.3.attn.k`` → ``attn.k``, ``kv.3.k`` → ``kv.k``."""
    head, _, rest = tap.partition(".")
    leaf = rest.partition(".")[2]
    return f"kv.{leaf}" if head == "kv" else leaf or tap


def _is_gross(result: TapResult) -> bool:
    leaf = _leaf(taps.split(result.tap)[1])
    inner = leaf in INNER or leaf in ("kv.k", "kv.v") or leaf == taps.FINAL_NORM
    return inner and _ratio(result) > GROSS


def _ratio(result: TapResult) -> float:
    """0 where no value was compared, so that it is never gross."""
    return min((r for r in (result.error_ratio, result.isolated_ratio) if r is not None), default=0)


def _is_what_was_attended(candidate: Trace, cache: str, starts: Mapping[str, int]) -> bool:
    index = taps.block_index(cache)
    before: np.ndarray | None = None
    for step, start in starts.items():
        now = candidate.arrays.get(f"{step}/{cache}")
        rows = candidate.arrays.get(f"{step}/{taps.block(index or 0, f'attn.{cache[-1]}')}")
        if now is None or rows is None or not np.array_equal(now[:, start:], rows):
            return False
        if before is not None and not np.array_equal(now[:, :start], before):
            return False
        before = now
    return True
