"""Distinguishes another representation of the same function from a fault.

A right port may compute another q, k or v than the reference: positions shifted by a constant (RoPE
acts on differences), heads in another order, a scale moved from one matrix to the next, a norm's
weight folded into the projection behind it. The intermediate values then differ, and so does the KV
cache, which is a true difference of what is *in* the cache. But nothing that is computed from them
differs. Such taps pass, with a note that says so.

A difference counts as one of representation if all of this is true for the whole leg:

- every tap that fails is an *inner* one (``INNER``) and fails only by its values; in particular
  every ``attn.out``, ``ff.out``, ``out`` and all logits pass, at every step and block by block;
- the difference is gross: its ratio is above ``GROSS``. A small difference could be a fault that
  later operations dampen below the limit; a gross one could not;
- a cache that differs equals, bit by bit, the rows that attention used: the rows of the step before
  and this step's own k or v. A wrong row that is written at the very end affects nothing else.
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
# ratio behind it (attn.out, ff.out, logits) is at least 0.10 times the largest inner one. So a
# fault that stays below the limit (1.5) behind the inner taps is below 15 in them; 100 leaves a
# margin of 7 times that.
GROSS = 100.0
NOTE = "another representation of the same function"


def excuse(
    results: Sequence[TapResult], candidate: Trace, starts: Mapping[str, int]
) -> tuple[list[TapResult], str]:
    """Changes inner taps that differ without any consequence to a pass.

    Args:
        results: the results of a leg, with the block-by-block run merged in.
        candidate: the whole run.
        starts: step → position of its first token.

    Returns:
        The changed results and a note on them; the given results and "" if anything is a fault.
    """
    failed = [result for result in results if result.outcome == FAIL]
    # A tap that could not be checked may be the very consequence.
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
    """Returns the smaller ratio; 0 if no value was compared, so that it is never gross."""
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
