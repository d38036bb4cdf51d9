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

import models
from edgeverify.checkpoints import open_checkpoint
from edgeverify.compare import Thresholds
from edgeverify.invariants import rope
from edgeverify.invariants.model import Facts, Invariant, NotApplicableError, Rotary, Violation
from edgeverify.invariants.rotaries import ReauthoredRotation, ReferenceRotation
from edgeverify.invariants.rope import ROPE
from models.port import Port
from tests import variants

NAMES = tuple(models.CATALOGUE)
BY_NAME = {invariant.name: invariant for invariant in ROPE}
QUICK = settings(
    max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck)
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
        with pytest.raises(NotApplicableError, match="all .. dimensions of a head are rotated"):
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
# The port, what must see it, where its shrunken arguments are, and what else they are not.
FAULTS: dict[str, tuple[Port, tuple[str, ...], tuple[str, ...]]] = {
    "another base": (
        variants.with_config(TINY, rope_theta=3701.0),
        ("reference",),
        ("norm", "origin", "distance", "compose"),
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
        ("reference", "compose"),
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
SEEN = [(fault, name) for fault, (_, seen, _) in FAULTS.items() for name in seen]
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


@pytest.mark.parametrize(("fault", "name"), SEEN)
def test_a_fault_is_seen_in_short(fault: str, name: str) -> None:
    arguments, told = shrunken(fault, name)
    print(fault, name, arguments, told, sep="\n  ")
    assert len(arguments.get("positions", arguments.get("pairs"))) <= 2
    assert f"block {arguments['block']}" in told
    assert "right is" in told


@pytest.mark.parametrize(("fault", "name"), UNSEEN)
def test_a_contract_that_a_fault_keeps_holds(fault: str, name: str) -> None:
    rotation, invariant = broken(fault), BY_NAME[f"rope.{name}"]
    told = [violation(invariant, rotation, edge) for edge in invariant.edges(facts_of(rotation, 3))]
    assert told
    assert set(told) == {""}
