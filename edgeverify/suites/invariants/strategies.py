"""Hypothesis strategies for the arguments of invariants, at and around every edge.

All arguments are ints, floats, strings and tuples, so that the result of Hypothesis' shrinking can
be printed, copied and run again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from edgeverify.suites.invariants.model import Facts, NotApplicableError
from edgeverify.suites.invariants.subject import DECODE

# Finite values in unwritten rows: from ordinary ones to those whose products with q are still
# finite.
GARBAGE = (1.0, 1e-30, 1e10, 1e30)
Strategy = st.SearchStrategy[dict[str, Any]]


def lengths_of_note(facts: Facts) -> list[int]:
    """Token counts around every boundary: signature, window and cache end, each ± 1."""
    windows = {window for window in facts.windows if window}
    edges = {*facts.lengths, *windows, sum(facts.lengths), facts.rows}
    around = {edge + shift for edge in edges for shift in (-1, 0, 1)} | {1, 2, 3}
    return sorted(n for n in around if 0 < n <= facts.rows)


def pool(facts: Facts) -> list[tuple[int, ...]]:
    """Conversations as long as the cache: equal, alternating, all different and random tokens."""
    last, rows = facts.vocab_size - 1, facts.rows
    return [
        (0,) * rows,
        (last,) * rows,
        tuple((0, last)[at % 2] for at in range(rows)),
        tuple(at % facts.vocab_size for at in range(rows)),
        *(random_tokens(facts, seed) for seed in range(4)),
    ]


def random_tokens(facts: Facts, seed: int) -> tuple[int, ...]:
    """A conversation of random tokens, as long as the cache."""
    drawn = np.random.default_rng(seed).integers(0, facts.vocab_size, facts.rows)
    return tuple(int(token) for token in drawn)


def conversations(facts: Facts) -> st.SearchStrategy[tuple[int, ...]]:
    """A conversation as long as the cache."""
    drawn = st.integers(4, 10_000).map(lambda seed: random_tokens(facts, seed))
    return st.one_of(st.sampled_from(pool(facts)), drawn)


def token(facts: Facts) -> st.SearchStrategy[int]:
    """A token, often the first or the last of the vocabulary."""
    last = facts.vocab_size - 1
    return st.one_of(st.sampled_from((0, last)), st.integers(0, last))


@st.composite
def plans(
    draw: Callable[..., Any], facts: Facts, count: int, start: int = 0, padded: bool = False
) -> tuple[tuple[str, int], ...]:
    """A plan of exactly ``count`` tokens from ``start`` on."""
    plan: list[tuple[str, int]] = []
    at, end = start, start + count
    while at < end:
        left = end - at
        fitting = [n for n in facts.lengths if n <= (facts.rows - at if padded else left)]
        options = [(f"prefill_{n}", min(n, left)) for n in reversed(fitting)]
        signature, most = draw(st.sampled_from([*options, (DECODE, 1)]))
        taken = most
        if padded and signature != DECODE:
            taken = draw(st.one_of(st.just(most), st.integers(1, most)))
        plan.append((signature, taken))
        at += taken
    return tuple(plan)


def count(facts: Facts, most: int | None = None) -> st.SearchStrategy[int]:
    """A number of tokens, often at a boundary."""
    most = facts.rows if most is None else most
    notable = [n for n in lengths_of_note(facts) if n <= most]
    return st.one_of(st.sampled_from(notable), st.integers(1, most))


@st.composite
def two_plans(draw: Callable[..., Any], facts: Facts) -> dict[str, Any]:
    """Two ways through one conversation, without pads."""
    n = draw(count(facts))
    return {
        "tokens": draw(conversations(facts))[:n],
        "plan": draw(plans(facts, n)),
        "other": draw(plans(facts, n)),
    }


@st.composite
def padded_plan(draw: Callable[..., Any], facts: Facts) -> dict[str, Any]:
    """A conversation and a way through it, with padded chunks."""
    n = draw(count(facts))
    return {
        "tokens": draw(conversations(facts))[:n],
        "plan": draw(plans(facts, n, padded=True)),
    }


@st.composite
def repeated_token(draw: Callable[..., Any], facts: Facts) -> dict[str, Any]:
    """One token over and over."""
    n = draw(count(facts))
    return {"token": draw(token(facts)), "plan": draw(plans(facts, n, padded=True))}


@st.composite
def padded_plan_and_seed(draw: Callable[..., Any], facts: Facts) -> dict[str, Any]:
    """As ``padded_plan``, with the seed of the values that are in the cache before."""
    return {**draw(padded_plan(facts)), "seed": draw(st.integers(0, 99))}


@st.composite
def padded_plan_and_garbage(draw: Callable[..., Any], facts: Facts) -> dict[str, Any]:
    """As ``padded_plan_and_seed``, with the size of those values."""
    return {**draw(padded_plan_and_seed(facts)), "scale": draw(st.sampled_from(GARBAGE))}


@st.composite
def abandoned_tail(draw: Callable[..., Any], facts: Facts) -> dict[str, Any]:
    """A conversation whose first continuation is given up for another."""
    n = draw(count(facts))
    back = draw(st.integers(0, n - 1))
    return {
        "tokens": draw(conversations(facts))[:n],
        "abandoned": draw(conversations(facts))[:n],
        "plan": draw(plans(facts, back, padded=True)),
        "again": draw(plans(facts, n - back, back, padded=True)),
    }


@st.composite
def same_chunk(draw: Callable[..., Any], facts: Facts) -> dict[str, Any]:
    """A chunk that every signature takes, after some past."""
    start = draw(st.integers(0, facts.rows - facts.lengths[-1]))
    n = draw(st.one_of(st.just(facts.lengths[0]), st.integers(1, facts.lengths[0])))
    return {
        "tokens": draw(conversations(facts))[: start + n],
        "plan": draw(plans(facts, start, padded=True)),
        "count": n,
        "lengths": facts.lengths,
    }


@st.composite
def full_cache(draw: Callable[..., Any], facts: Facts) -> dict[str, Any]:
    """A conversation up to the last row, and what is tried past it."""
    signatures = [f"prefill_{n}" for n in facts.lengths]
    return {
        "tokens": draw(conversations(facts)),
        "plan": draw(plans(facts, facts.rows)),
        "past": draw(st.sampled_from([DECODE, *signatures])),
    }


@st.composite
def changed_token(draw: Callable[..., Any], facts: Facts) -> dict[str, Any]:
    """A conversation, and another token at one of its positions."""
    arguments: dict[str, Any] = draw(padded_plan(facts))
    n = len(arguments["tokens"])
    at = draw(st.integers(0, n - 1))
    other = draw(token(facts).filter(lambda drawn: drawn != arguments["tokens"][at]))
    return {**arguments, "at": at, "token": other}


def watchable(facts: Facts, block: int) -> list[str]:
    """The signatures that show what a block saw, by the next block's cache or by logits."""
    prefills = [f"prefill_{n}" for n in facts.lengths]
    shown = block + 1 < facts.num_blocks or facts.prefill_logits
    return [DECODE, *(prefills if shown else [])]


@st.composite
def edited_row(draw: Callable[..., Any], facts: Facts) -> dict[str, Any]:
    """A block, a step after some past, and a row of that past near the edge of the visible rows."""
    block = draw(st.integers(0, facts.num_blocks - 1))
    signature = draw(st.sampled_from(watchable(facts, block)))
    length = 1 if signature == DECODE else int(signature.removeprefix("prefill_"))
    start = draw(st.integers(1, facts.rows - length))
    taken = draw(st.one_of(st.just(length), st.integers(1, length)))
    window = facts.windows[block]
    near = {0, start - 1}
    if window:
        edges = [start - window, start + taken - 1 - window]
        near |= {edge + shift for edge in edges for shift in (0, 1)}
    row = draw(st.sampled_from(sorted(at for at in near if 0 <= at < start)))
    return {
        "tokens": draw(conversations(facts))[: start + taken],
        "block": block,
        "start": start,
        "step": (signature, taken),
        "row": row,
    }


@st.composite
def padded_chunk(draw: Callable[..., Any], facts: Facts) -> dict[str, Any]:
    """A chunk that leaves room in its signature, its pads, and tokens that follow."""
    longer = [n for n in facts.lengths if n > 1]
    if not longer:
        raise NotApplicableError("no prefill takes more than one token, so none has pads")
    length = draw(st.sampled_from(longer))
    start = draw(st.integers(0, facts.rows - length))
    real = draw(st.one_of(st.sampled_from((1, length - 1)), st.integers(1, length - 1)))
    end = start + real
    following = draw(st.integers(0, min(facts.rows - end, length + 1)))
    return {
        "tokens": draw(conversations(facts))[: end + following],
        "start": start,
        "chunk": (f"prefill_{length}", real),
        "following": draw(plans(facts, following, end, padded=True)),
    }


@st.composite
def padded_chunk_and_pads(draw: Callable[..., Any], facts: Facts) -> dict[str, Any]:
    """As ``padded_chunk``, with the pads of two runs."""
    arguments: dict[str, Any] = draw(padded_chunk(facts))
    return {**arguments, "pad": draw(token(facts)), "other": draw(token(facts))}


@st.composite
def neighbours(draw: Callable[..., Any], facts: Facts) -> dict[str, Any]:
    """Conversations side by side in a batch, one of which is replaced."""
    n = draw(count(facts, facts.rows - 1))
    return {
        "tokens": draw(conversations(facts))[: n + 1],
        "others": draw(conversations(facts))[: n + 1],
        "count": n,
        "row": draw(st.integers(0, 7)),
    }
