"""The contracts of RoPE: every port and Hugging Face hold them, and each sees what breaks it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, find, given, seed, settings
from litert_torch.generative.layers import rotary_position_embedding as upstream
from torch import nn

import edgeverify_models as models
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.suites.invariants import rope
from edgeverify.suites.invariants.model import (
    CannotCheckError,
    Facts,
    Invariant,
    NotApplicableError,
    Rotary,
    Violation,
)
from edgeverify.suites.invariants.rope import ROPE
from edgeverify.suites.invariants.rotaries import ReauthoredRotation, ReferenceRotation
from edgeverify_models.port import Port
from tests import variants

NAMES = tuple(models.CATALOGUE)
BY_NAME = {invariant.name: invariant for invariant in ROPE}
QUICK = settings(
    max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
SEARCH = settings(QUICK, max_examples=200)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tiny models' products are faster on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rotation_of(port: Port) -> ReauthoredRotation:
    checkpoint = open_checkpoint(None, port, size="tiny")
    return ReauthoredRotation(port, checkpoint.hf_config, checkpoint.tensors())


@cache
def clean(name: str) -> ReauthoredRotation:
    return rotation_of(models.load(name))


def facts_of(rotation: Any, blocks: int) -> Facts:
    return Facts("tiny", blocks, 0, 0, (), (None,) * blocks, rotation.rotary)


@pytest.mark.parametrize("invariant", ROPE, ids=lambda i: i.name)
@pytest.mark.parametrize("subject", ["port", "HF"])
@pytest.mark.parametrize("name", NAMES)
def test_every_port_holds(name: str, subject: str, invariant: Invariant) -> None:
    port = clean(name)
    rotation = port if subject == "port" else port.reference
    tiny = models.load(name).hf_configs["tiny"]
    facts = facts_of(rotation, models.load(name).model_config(tiny).num_layers)
    if invariant.name == "rope.share" and name != "phi2":
        with pytest.raises(NotApplicableError, match=r"all .. dimensions of a head are rotated"):
            invariant.holds(rotation, **invariant.edges(facts)[0])
        return

    @seed(0)
    @QUICK
    @given(invariant.arguments(facts))
    def drawn(arguments: dict[str, Any]) -> None:
        invariant.holds(rotation, **arguments)

    for arguments in invariant.edges(facts):
        invariant.holds(rotation, **arguments)
    drawn()


def with_rope(port: Port, build: Callable[..., Any]) -> Port:
    """A port whose cos and sin come from ``build(input_pos, n_elem, base)``."""

    def config(hf: Mapping[str, Any]) -> Any:
        return replace(port.model_config(hf), build_rope=build)

    return replace(port, model_config=config)


def with_apply(port: Port, apply: Callable[..., Any], blocks: tuple[int, ...] = (0, 1, 2)) -> Port:
    """A port whose ``blocks`` turn q and k by ``apply(q, k, cos, sin, input_pos)``."""

    def change(model: nn.Module) -> None:
        for index in blocks:
            attention = model.transformer_blocks[index].atten_func
            attention.forward = _applying(attention.forward, apply)

    return variants.with_model(port, change)


def _applying(forward: Callable[..., Any], apply: Callable[..., Any]) -> Callable[..., Any]:
    def changed(x: Any, rotary: Any, mask: Any, input_pos: Any, *rest: Any) -> Any:
        def inline(q: Any, k: Any, cos: Any, sin: Any) -> Any:
            return apply(q, k, cos, sin, input_pos)

        with mock.patch.object(upstream, "apply_rope_inline", inline):
            return forward(x, rotary, mask, input_pos, *rest)

    return changed


def narrowed(dtype: torch.dtype) -> Callable[..., Any]:
    def build(*args: Any) -> Any:
        return tuple(part.to(dtype).float() for part in upstream.build_rope(*args))

    return build


def interleaved(q: Any, k: Any, cos: Any, sin: Any, _: Any) -> Any:
    """Turns element 2i with element 2i + 1, as Meta's own checkpoints want it."""

    def turn(x: torch.Tensor) -> torch.Tensor:
        first, second = x[..., ::2], x[..., 1::2]
        c, s = cos[:, :, None], sin[:, :, None]
        return torch.stack((first * c - second * s, second * c + first * s), -1).flatten(-2)

    return turn(q), turn(k)


def absolute_position_added_to_k(q: Any, k: Any, cos: Any, sin: Any, input_pos: Any) -> Any:
    q, k = upstream.apply_rope_inline_as_it_was(q, k, cos, sin)
    return q, k + 1e-3 * input_pos[None, :, None, None]


@contextmanager
def original() -> Iterator[None]:
    """Keeps the function that ``with_apply`` replaces within its reach."""
    kept = upstream.apply_rope_inline
    with mock.patch.object(upstream, "apply_rope_inline_as_it_was", kept, create=True):
        yield


def scaled(by: float) -> Callable[..., Any]:
    return lambda *args: tuple(part * by for part in upstream.build_rope(*args))


def sign_flipped(*args: Any) -> Any:
    cos, sin = upstream.build_rope(*args)
    return cos, -sin


def from_position_on(limit: int) -> Callable[..., Any]:
    """All positions from the limit on are taken for it: cos and sin from a table that ends."""
    return lambda positions, *args: upstream.build_rope(positions.clamp(max=limit), *args)


TINY = models.load("tinyllama")
PHI2 = models.load("phi2")
# The port, the contracts that must see it (the first with shrunken arguments), those it keeps.
FAULTS: dict[str, tuple[Port, tuple[str, ...], tuple[str, ...]]] = {
    "another base": (
        variants.with_config(TINY, rope_theta=3701.0),
        ("reference", "compose"),
        ("norm", "origin", "distance"),
    ),
    "interleaved pairs": (
        with_apply(TINY, interleaved),
        ("reference", "norm", "compose"),
        ("origin", "distance"),
    ),
    "all dimensions rotated": (
        variants.with_config(PHI2, partial_rotary_factor=1.0),
        ("share", "reference"),
        ("origin",),
    ),
    "cos and sin in bfloat16": (
        with_rope(TINY, narrowed(torch.bfloat16)),
        ("norm", "reference", "compose", "distance"),
        ("origin",),
    ),
    "cos and sin in float16": (
        with_rope(TINY, narrowed(torch.float16)),
        ("norm", "reference", "compose", "distance"),
        ("origin",),
    ),
    "positions off by one": (
        with_rope(TINY, lambda at, *args: upstream.build_rope(at + 1, *args)),
        ("origin", "reference", "compose"),
        ("norm", "distance"),
    ),
    "sin with the other sign": (
        with_rope(TINY, sign_flipped),
        ("compose", "reference"),
        ("norm", "origin", "distance"),
    ),
    "scaled by one millionth": (
        with_rope(TINY, scaled(1 + 1e-6)),
        ("norm", "origin", "reference"),
        (),
    ),
    "absolute position added": (
        with_apply(TINY, absolute_position_added_to_k, blocks=(1,)),
        ("distance", "reference", "norm", "compose"),
        ("origin",),
    ),
    "a table that ends": (
        with_rope(TINY, from_position_on(300)),
        ("distance", "compose", "reference"),
        ("norm", "origin"),
    ),
}
FIRST = [(fault, seen[0]) for fault, (_, seen, _) in FAULTS.items()]
SEEN = [(fault, name) for fault, (_, seen, _) in FAULTS.items() for name in seen]
AT_1 = {"which": "q", "block": 0, "positions": (1,)}
AT_0 = {**AT_1, "positions": (0,)}
SHRUNKEN: dict[str, tuple[dict[str, Any], str]] = {
    "another base": (AT_1, "block 0, q, position 1: 129 times the floor, allowed 4"),
    "interleaved pairs": (AT_1, "block 0, q, position 1: 8.87e+06 times the floor"),
    "all dimensions rotated": (AT_1, "position 1, head 0, dimension 10: 0.776266, right is 0.777"),
    "cos and sin in bfloat16": (AT_1, "head 1, dimensions 0 and 20: their norm changes by 0.002"),
    "cos and sin in float16": (AT_1, "head 0, dimensions 8 and 28: their norm changes by 0.0002"),
    "positions off by one": (
        {**AT_1, "positions": (0, 0)},
        "position 0, head 0, dimension 0: 0.87995774, right is 1.117622 bitwise",
    ),
    "sin with the other sign": (
        {"which": "q", "block": 0, "pairs": ((1, 0),)},
        "q, back from position 1: 1.29e+07",
    ),
    "scaled by one millionth": (AT_0, "their norm changes by 1e-06, right is at most 3.37e-07"),
    "absolute position added": (
        {"block": 1, "pairs": ((0, 0),), "shift": 1},
        "block 1, q at 1 and k at 1: 1.87e+04 times the floor, allowed 4",
    ),
    "a table that ends": (
        {"block": 0, "pairs": ((0, 1),), "shift": 300},
        "q at 300 and k at 301: 3.33e+04 times the floor",
    ),
}
UNSEEN = [(fault, name) for fault, (_, _, unseen) in FAULTS.items() for name in unseen]


@cache
def broken(fault: str) -> ReauthoredRotation:
    with original():
        return rotation_of(FAULTS[fault][0])


def violation(invariant: Invariant, rotation: Any, arguments: Mapping[str, Any]) -> str:
    """What the invariant says, or nothing."""
    with original():
        try:
            invariant.holds(rotation, **arguments)
        except Violation as found:
            return str(found)
    return ""


def shrunken(fault: str, name: str) -> tuple[dict[str, Any], str]:
    """The simplest arguments that show a fault, and what the invariant says of them."""
    rotation, invariant = broken(fault), BY_NAME[f"rope.{name}"]
    arguments = find(
        invariant.arguments(facts_of(rotation, 3)),
        lambda drawn: bool(violation(invariant, rotation, drawn)),
        settings=SEARCH,
        random=random.Random(0),
    )
    return arguments, violation(invariant, rotation, arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "name"), FIRST)
def test_a_fault_is_seen_and_shrunken(fault: str, name: str) -> None:
    arguments, told = shrunken(fault, name)
    expected, words = SHRUNKEN[fault]
    assert arguments == {**expected, "seed": 0}
    assert words in told


def at_edges(fault: str, name: str) -> list[str]:
    """What the invariant says at each of its edges."""
    rotation, invariant = broken(fault), BY_NAME[f"rope.{name}"]
    edges = invariant.edges(facts_of(rotation, 3))
    assert edges
    return [violation(invariant, rotation, edge) for edge in edges]


@pytest.mark.parametrize(("fault", "name"), SEEN)
def test_a_fault_is_seen_at_an_edge(fault: str, name: str) -> None:
    assert any("right is" in told for told in at_edges(fault, name))


@pytest.mark.parametrize(("fault", "name"), UNSEEN)
def test_a_contract_that_a_fault_keeps_holds(fault: str, name: str) -> None:
    assert set(at_edges(fault, name)) == {""}


def test_every_contract_is_the_first_to_see_a_fault() -> None:
    assert {name for _, name in FIRST} == {name.removeprefix("rope.") for name in BY_NAME}


def test_a_wrong_reference_does_not_widen_the_floor() -> None:
    """Were Hugging Face's rotary another function, its error would allow everything."""
    rotation = ReferenceRotation(TINY.hf_configs["tiny"])
    frequencies = tuple(value * 1.001 for value in rotation.rotary.frequencies)
    rotation.rotary = replace(rotation.rotary, frequencies=frequencies)
    arguments = {"which": "q", "block": 0, "positions": (300,), "seed": 0}
    with pytest.raises(Violation, match="position 300"):
        rope.reference(rotation, **arguments)
    port = rotation_of(TINY)
    port.reference, port.rotary = rotation, rotation.rotary
    with pytest.raises(CannotCheckError, match="floors off at position 300"):
        rope.reference(port, **arguments)


class Given:
    """A rotation that gives what the test sets."""

    def __init__(self, rotated: np.ndarray) -> None:
        self.rotary = Rotary(8, 4, (1.0, 0.1), 1.0, 16)
        self.reference = self
        self.rotated = rotated

    def heads(self, which: str, block: int) -> int:
        return 2

    def rotate(self, which: str, block: int, vectors: Any, positions: Any) -> np.ndarray:
        return self.rotated


@pytest.mark.parametrize(
    ("rotated", "words"),
    [
        (np.zeros((1, 2, 4), np.float32), r"shape \(1, 2, 4\), float32; right is \(1, 2, 8\)"),
        (np.zeros((1, 2, 8), np.float16), "float16; right is"),
        (np.full((1, 2, 8), np.nan, np.float32), "position 3, head 0, dimension 0: nan; right is"),
    ],
)
@pytest.mark.parametrize("contract", [rope.norm, rope.share, rope.reference])
def test_what_is_no_rotation_is_refused(contract: Any, rotated: np.ndarray, words: str) -> None:
    with pytest.raises(Violation, match=words):
        contract(Given(rotated), which="q", block=0, positions=(3,), seed=0)


def test_the_floor_grows_with_the_position() -> None:
    rotation = clean("tinyllama")
    positions = np.array([0, 3, 30, 300])
    vectors = np.random.default_rng(0).standard_normal((4, 4, 40), dtype=np.float32)
    rows = rope.floor_of(rotation, "q", 0, vectors, positions).rows
    assert rows[0] == 0
    assert (np.diff(rows) > 0).all()
    assert 10 * rows[1] < rows[3] < 300 * rope.HALF_ULP
