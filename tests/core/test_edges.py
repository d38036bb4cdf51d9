"""Which edges a case has, and the KV caches that they start from."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeverify.core import edges
from edgeverify.core.case import Case, default_cache_len, plan_steps, prompt_length
from edgeverify.core.edges import Edge, moved, plan_edges, rows_left
from edgeverify.core.trace import Trace


def case_of(lengths: tuple[int, ...] = (16, 32), rows: int | None = None, **more: object) -> Case:
    steps = plan_steps(range(1, prompt_length(lengths) + 1), lengths, range(8))
    rows = rows or default_cache_len(steps)
    return Case("m", "tiny", "default", tuple(sorted(lengths)), rows, steps, **more)  # type: ignore[arg-type]


def planned(case: Case, positions: int = 0) -> dict[str, Edge]:
    return {edge.step.name: edge for edge in plan_edges(case, positions=positions, seed=0)}


def test_the_edges_of_the_default_case() -> None:
    found = planned(case_of(window=24), 2048)
    assert {
        name: (edge.step.signature, edge.step.start, len(edge.step.tokens), edge.rows)
        for name, edge in found.items()
    } == {
        "padded first chunk": ("prefill_16", 0, 4, 96),
        "odd chunk start": ("prefill_16", 21, 16, 96),
        "row beside the window": ("decode", 24, 1, 96),
        "last cache row": ("decode", 95, 1, 96),
        "rows of a batch 0": ("decode", 77, 1, 96),
        "rows of a batch 1": ("decode", 77, 1, 96),
        "last positions": ("prefill_16", 2032, 16, 2048),
    }


@pytest.mark.parametrize(
    ("more", "missing"),
    [
        ({"window": None}, edges.BESIDE_WINDOW),
        ({"window": 95}, edges.BESIDE_WINDOW),  # no row lies outside
        ({"decode_batch": 0}, edges.LAST_ROW),
        ({"decode_batch": 0}, edges.BATCH),
        ({}, edges.LAST_POSITIONS),
    ],
)
def test_an_edge_that_does_not_exist_is_left_out(more: dict[str, object], missing: str) -> None:
    found = plan_edges(case_of(**more), positions=96, seed=0)
    assert missing not in {edge.kind for edge in found}


def test_a_prefill_of_one_token_has_no_pads() -> None:
    assert edges.PADDED not in planned(case_of((1, 4)))


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.sets(st.integers(1, 40), min_size=1, max_size=3),
    spare=st.integers(0, 40),
    positions=st.integers(0, 300),
    window=st.none() | st.integers(1, 200),
    decode=st.integers(0, 2),
)
def test_every_edge_fits_its_cache_and_calls_a_signature(
    lengths: set[int], spare: int, positions: int, window: int | None, decode: int
) -> None:
    given_ = case_of(tuple(sorted(lengths)))
    rows = max(step.start + step.length for step in given_.steps) + spare
    case = case_of(tuple(sorted(lengths)), rows, window=window, decode_batch=decode)
    found = plan_edges(case, positions=positions, seed=0)
    assert len({edge.step.name for edge in found}) == len(found)
    for edge in found:
        step = edge.step
        assert step.start >= 0
        assert step.start + step.length <= edge.rows
        assert case.signatures[step.signature] == step.length
        assert 0 < len(step.tokens) <= step.length
        assert set(step.tokens) <= set(case.tokens)
        assert Edge.from_dict(asdict(edge)) == edge
    odd = [edge.step.start for edge in found if edge.kind == edges.ODD_START]
    assert all(start % 2 for start in odd)


def test_a_state_repeats_the_rows_of_the_conversation_and_differs_within_a_batch() -> None:
    case = case_of()
    kept = {"kv.0.k": np.arange(3.0)[:, None, None] + np.zeros((3, 2, 4))}
    first, second = (planned(case)[f"rows of a batch {turn}"].state(kept) for turn in (0, 1))
    assert first["kv.0.k"].shape == (77, 2, 4)
    assert first["kv.0.k"][:5, 0, 0].tolist() == [0, 1, 2, 0, 1]
    assert second["kv.0.k"][:5, 0, 0].tolist() == [1, 2, 0, 1, 2]
    assert planned(case)["padded first chunk"].state(kept)["kv.0.k"].shape == (0, 2, 4)


def test_the_rows_of_the_last_step_are_kept_and_moved_by_the_floor() -> None:
    case = case_of()
    exact = np.random.default_rng(0).standard_normal((1, 77, 2, 4))
    last = case.steps[-1].name
    trace = Trace(
        {"prefill.0/kv.0.k": exact[:, :4], f"{last}/kv.0.k": exact, f"{last}/embed": exact}
    )
    rows = rows_left(trace, case)
    assert list(rows) == ["kv.0.k"]
    assert np.array_equal(rows["kv.0.k"], exact[0])
    floor = {f"{last}/kv.0.k": np.full(77, 1e-3)}
    other = moved(rows, floor, case, 1)["kv.0.k"]
    assert other.dtype == np.float32
    error = np.linalg.norm((other - exact[0]).reshape(77, -1), axis=1)
    size = np.linalg.norm(exact[0].reshape(77, -1), axis=1)
    assert error / size == pytest.approx(1e-3, rel=1e-2)
    assert not np.array_equal(other, moved(rows, floor, case, 2)["kv.0.k"])


def test_what_is_expected_of_an_edge() -> None:
    found = planned(case_of())
    chunk, step = found["odd chunk start"], found["last cache row"]
    rows = [f"blocks.{i}.attn.{which}" for i in range(2) for which in "kv"]
    assert chunk.expected(2, logits=False, cache=True) == [f"odd chunk start/{tap}" for tap in rows]
    assert step.expected(2, logits=False, cache=False) == ["last cache row/logits"]
    assert chunk.expected(2, logits=False, cache=False) == []
