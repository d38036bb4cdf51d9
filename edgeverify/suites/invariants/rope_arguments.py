"""The arguments of the RoPE contracts: Hypothesis strategies, and the edges before them.

All are keyword arguments of plain ints and tuples, so that a failure can be copied; vectors come
from a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeverify.suites.invariants.model import Arguments, Facts

MAX_ROWS = 12


def _common(facts: Facts, *, which: bool = True) -> dict[str, Any]:
    from hypothesis import strategies as st

    common: dict[str, Any] = {
        "block": st.integers(0, facts.num_blocks - 1),
        "seed": st.integers(0, 2**16 - 1),
    }
    return {"which": st.sampled_from(("q", "k")), **common} if which else common


def _some_positions(facts: Facts) -> Any:
    """Positions anywhere, as often near the model's last one as near 0."""
    from hypothesis import strategies as st

    last = facts.rope.max_positions - 1
    position = st.one_of(st.integers(0, last), st.integers(0, last).map(lambda p: last - p))
    return st.lists(position, min_size=1, max_size=MAX_ROWS).map(tuple)


def positions(facts: Facts) -> Any:
    """Positions of the model, in any order."""
    from hypothesis import strategies as st

    return st.fixed_dictionaries({**_common(facts), "positions": _some_positions(facts)})


def with_origin(facts: Facts) -> Any:
    """Positions of the model with a 0 somewhere among them."""
    from hypothesis import strategies as st

    at_zero = st.tuples(_some_positions(facts), st.integers(0, MAX_ROWS)).map(
        lambda drawn: (*drawn[0][: drawn[1]], 0, *drawn[0][drawn[1] :])
    )
    return st.fixed_dictionaries({**_common(facts), "positions": at_zero})


def sums(facts: Facts) -> Any:
    """Pairs (a, b) whose sum a + b is a position of the model."""
    from hypothesis import strategies as st

    # Two ordered positions make a start and a step that stay within the model's positions. They
    # shrink faster than a step that is drawn for its start.
    position = st.integers(0, facts.rope.max_positions - 1)
    pair = st.tuples(position, position).map(lambda drawn: (min(drawn), max(drawn) - min(drawn)))
    pairs = st.lists(pair, min_size=1, max_size=MAX_ROWS).map(tuple)
    return st.fixed_dictionaries({**_common(facts), "pairs": pairs})


def shifted(facts: Facts) -> Any:
    """Pairs of positions, and a shift that keeps them within the model's."""
    from hypothesis import strategies as st

    last = facts.rope.max_positions - 1
    position = st.integers(0, last)
    drawn = {
        **_common(facts, which=False),
        "pairs": st.lists(st.tuples(position, position), min_size=1, max_size=MAX_ROWS),
        "shift": st.integers(1, last),
    }

    def within(arguments: dict[str, Any]) -> dict[str, Any]:
        room = last + 1 - arguments["shift"]
        return {**arguments, "pairs": tuple((a % room, b % room) for a, b in arguments["pairs"])}

    return st.fixed_dictionaries(drawn).map(within)


def _edge_positions(facts: Facts) -> list[tuple[int, ...]]:
    last = facts.rope.max_positions - 1
    return [(last,), tuple(range(8)), tuple(range(last - 7, last + 1)), (0, 1, last // 2, last)]


def edges(facts: Facts) -> Sequence[Arguments]:
    """The first and last positions, in single rows and in rows of eight, on every block."""
    return [
        {"which": which, "block": block, "positions": positions, "seed": 0}
        for which in ("q", "k")
        for block in range(facts.num_blocks)
        for positions in _edge_positions(facts)
    ]


def origin_edges(facts: Facts) -> Sequence[Arguments]:
    """The origin as the only position, as the first, and after the model's last position."""
    rows = ((0,), tuple(range(8)), (facts.rope.max_positions - 1, 0))
    return [{**edge, "positions": at} for edge in _first(edges(facts)) for at in rows]


def sum_edges(facts: Facts) -> Sequence[Arguments]:
    """Sums that stay, that step once, and that reach the model's last position."""
    last = facts.rope.max_positions - 1
    pairs = ((1, 1), (1, last - 1), (last, 0), (0, last), (last // 2, last - last // 2))
    return [_without(edge, "positions", pairs=pairs) for edge in _first(edges(facts))]


def shift_edges(facts: Facts) -> Sequence[Arguments]:
    """The largest shifts."""
    last = facts.rope.max_positions - 1
    return [
        {"block": block, "pairs": pairs, "shift": shift, "seed": 0}
        for block in range(facts.num_blocks)
        for pairs, shift in ((((0, 0),), last), (((1, 0), (0, 1)), last - 1))
    ]


def _first(edges: Sequence[Arguments]) -> list[Arguments]:
    """One edge for each of q and k in each block."""
    return list({(edge["which"], edge["block"]): edge for edge in edges}.values())


def _without(edge: Arguments, key: str, **added: Any) -> Mapping[str, Any]:
    return {**{name: value for name, value in edge.items() if name != key}, **added}
