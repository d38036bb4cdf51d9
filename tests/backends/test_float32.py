"""Float32 as another right implementation rounds it: sums in order, angles rounded otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeverify.backends.float32 import (
    FUNCTION_HALF_ULPS,
    HALF_ULP,
    RoundedAtRandom,
    SequentialSums,
    angles_rounded_otherwise,
)
from edgeverify.backends.float64 import exact_frequencies, is_rotary
from edgeverify.hf.config import reference_config
from edgeverify_models import load

F32 = np.float32


def in_order(a: np.ndarray, b: np.ndarray, *, fused: bool) -> np.ndarray:
    """(M, K) times (K, N), one product after another; ``fused`` rounds once per step, not twice."""
    out = np.zeros((a.shape[0], b.shape[1]), F32)
    for k in range(a.shape[1]):
        if fused:
            product = a[:, k, None].astype(np.float64) * b[k].astype(np.float64)
            out = (out.astype(np.float64) + product).astype(F32)
        else:
            out = out + a[:, k, None] * b[k]
    return out


def assert_in_order(got: torch.Tensor, a: np.ndarray, b: np.ndarray) -> None:
    """Bitwise one of the two ways in which hardware adds a product."""
    ways = [in_order(a, b, fused=fused) for fused in (False, True)]
    assert any(np.array_equal(got.numpy(), way) for way in ways)


@pytest.fixture
def draw() -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


def test_a_linear_layer(draw: Callable[..., torch.Tensor]) -> None:
    x, weight, bias = draw(2, 7, 500), draw(9, 500), draw(9)
    with SequentialSums():
        plain = functional.linear(x, weight)
        with_bias = functional.linear(x, weight, bias)
    assert plain.shape == (2, 7, 9)
    assert_in_order(plain.reshape(14, 9), x.reshape(14, 500).numpy(), weight.T.numpy())
    torch.testing.assert_close(with_bias, plain + bias, rtol=0, atol=0)
    assert not torch.equal(plain, functional.linear(x, weight))  # PyTorch sums in blocks


def test_a_module_is_reached(draw: Callable[..., torch.Tensor]) -> None:
    layer, x = nn.Linear(300, 5), draw(4, 300)
    with torch.no_grad(), SequentialSums():
        inside = layer(x)
        direct = functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(inside, direct)


@pytest.mark.parametrize("spell", [torch.matmul, torch.Tensor.matmul, lambda a, b: a @ b])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((6, 400), (400, 5)),
        ((3, 6, 400), (3, 400, 5)),
        ((2, 3, 6, 400), (2, 3, 400, 5)),
        ((2, 3, 6, 400), (1, 3, 400, 5)),
        ((2, 1, 6, 400), (3, 400, 5)),
        ((2, 6, 400), (400, 5)),
    ],
)
def test_a_product_of_batches(
    draw: Callable[..., torch.Tensor],
    spell: Callable[..., torch.Tensor],
    left: tuple[int, ...],
    right: tuple[int, ...],
) -> None:
    a, b = draw(*left), draw(*right)
    with SequentialSums():
        got = spell(a, b)
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    assert got.shape == (*batch, 6, 5)
    a, b = a.expand(*batch, 6, 400), b.expand(*batch, 400, 5)
    for index in np.ndindex(*batch):
        assert_in_order(got[index], a[index].numpy(), b[index].numpy())


@pytest.mark.parametrize("spell", [torch.mean, torch.Tensor.mean])
def test_a_mean(draw: Callable[..., torch.Tensor], spell: Callable[..., torch.Tensor]) -> None:
    x = draw(3, 5, 700)
    for dim, keepdim in ((-1, True), (-1, False), (1, True)):
        with SequentialSums():
            got = spell(x, dim, keepdim=keepdim)
        total = np.zeros(np.moveaxis(x.numpy(), dim, 0)[0].shape, F32)
        for part in np.moveaxis(x.numpy(), dim, 0):
            total = total + part
        want = total / F32(x.shape[dim])
        np.testing.assert_array_equal(got.numpy(), np.expand_dims(want, dim) if keepdim else want)
    with SequentialSums():
        assert not torch.equal(x.mean(-1), torch.tensor(x.numpy().mean(-1)))


def test_a_layer_norm(draw: Callable[..., torch.Tensor]) -> None:
    x, weight, bias = 3 + draw(4, 700), draw(700), draw(700)
    with SequentialSums():
        got = functional.layer_norm(x, (700,), weight, bias, 1e-3)
        bare = functional.layer_norm(x, (700,))

    def mean(values: np.ndarray) -> np.ndarray:
        total = np.zeros(4, F32)
        for column in values.T:
            total = total + column
        return (total / F32(700))[:, None]

    centred = x.numpy() - mean(x.numpy())
    for eps, scale, shift, result in ((1e-3, weight, bias, got), (1e-5, 1, 0, bare)):
        factor = torch.rsqrt(torch.from_numpy(mean(centred**2)) + eps)
        want = torch.from_numpy(centred) * factor * scale + shift
        assert torch.equal(result, want)
    exact = functional.layer_norm(x.double(), (700,), weight.double(), bias.double(), 1e-3)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)


def test_everything_else_and_everything_after_is_left_alone(
    draw: Callable[..., torch.Tensor],
) -> None:
    x, weight = draw(5, 600), draw(4, 600)
    before = functional.linear(x, weight)
    with SequentialSums():
        assert torch.equal(torch.softmax(x, -1), x.softmax(-1))
    assert torch.equal(functional.linear(x, weight), before)


Layer = Callable[[torch.Tensor], torch.Tensor]
WEIGHT, BIAS = torch.linspace(-1, 1, 600), torch.linspace(2, 3, 600)
# name → a layer, and how far a right float32 result may be from the exact one, relative to the
# largest value of the row, in half ulps
LAYERS: dict[str, tuple[Layer, float]] = {
    "linear": (lambda x: functional.linear(x, x * 0.04), 60),
    "product": (lambda x: (0.04 * x) @ x.T, 60),
    "mean": (lambda x: x.pow(2).mean(-1, keepdim=True), 60),
    "mean of a named axis": (lambda x: torch.mean(x, dim=1), 60),
    "layer norm": (lambda x: functional.layer_norm(x, (600,), WEIGHT.to(x), BIAS.to(x)), 60),
    "sum": (lambda x: x + x.flip(-1), 4),
    "tanh": (torch.tanh, FUNCTION_HALF_ULPS + 4),
    "SiLU": (functional.silu, FUNCTION_HALF_ULPS + 6),
    "softmax": (lambda x: torch.softmax(x, -1), FUNCTION_HALF_ULPS + 16),
    "GELU": (functional.gelu, 16),
    "GELU by tanh": (lambda x: functional.gelu(x, approximate="tanh"), 16),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_draw_is_right_and_not_the_only_one(name: str, draw: Callable[..., torch.Tensor]) -> None:
    layer, half_ulps = LAYERS[name]
    x = draw(9, 600)
    exact = layer(x.double())

    def drawn(seed: int) -> torch.Tensor:
        with RoundedAtRandom(seed):
            return layer(x)

    one, again, other = drawn(1), drawn(1), drawn(2)
    assert one.dtype == torch.float32
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    for found in (one, other):
        off = (found.double() - exact).abs().amax() / exact.abs().amax()
        assert off <= half_ulps * HALF_ULP


def test_rounding_at_random_is_right_on_average() -> None:
    """1 + 0.3 ulp becomes the upper neighbour in three of ten cases."""
    ulp = 2.0**-23
    with RoundedAtRandom(0):
        found = torch.full((20000,), 1.0) + torch.full((20000,), 0.3 * ulp)
    assert set(found.tolist()) == {1.0, 1.0 + ulp}
    assert ((found - 1).double().mean() / ulp).item() == pytest.approx(0.3, abs=0.02)


def test_what_float32_holds_is_not_rounded() -> None:
    x = torch.arange(-4.0, 5.0)
    with RoundedAtRandom(0):
        assert torch.equal(x + x, 2 * x)
        assert torch.equal(x * 0.5, x / 2)
        assert torch.equal(x / 3 + 1, 1 + x / 3), "a number has no other order"
        assert torch.equal(x - x, torch.zeros(9))


def test_where_one_term_dominates_the_order_of_a_sum_is_what_draws_differ_in(
    draw: Callable[..., torch.Tensor],
) -> None:
    """The error of each draw is that of a few roundings of the large term."""
    x, weight = draw(1, 512), draw(1, 512)
    weight[0, 100] = 3e4 / x[0, 100]
    exact = functional.linear(x.double(), weight.double()).item()
    errors = set()
    for seed in range(12):
        with RoundedAtRandom(seed):
            errors.add(abs(functional.linear(x, weight).item() - exact))
    assert len(errors) > 6
    assert max(errors) > 3 * sorted(errors)[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_a_draw_touches_float32_alone(dtype: torch.dtype) -> None:
    x = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    with RoundedAtRandom(3):
        assert torch.equal(x + x, torch.add(x, x))
        assert (x * x).dtype == dtype
        assert (x.float() + x.double()).dtype == torch.float64


@pytest.fixture(scope="module", params=["tinyllama", "gemma2", "phi2", "openelm"])
def rotary(request: pytest.FixtureRequest) -> nn.Module:
    """A family's rotary module, inside its model."""
    from transformers import AutoModelForCausalLM

    config = reference_config(load(request.param).hf_configs["tiny"])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    return next(module for module in model.modules() if "inv_freq" in module._buffers)


def angles(rotary: nn.Module, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return rotary(torch.zeros(1, 1, 1), position_ids=positions)


POSITIONS = torch.tensor([[0, 1, 2, 69, 200]])


def test_angles_move_by_half_an_ulp(rotary: nn.Module) -> None:
    usual = angles(rotary, POSITIONS)
    with angles_rounded_otherwise(rotary):
        moved = angles(rotary, POSITIONS)
    exact = POSITIONS[0, :, None].double() * exact_frequencies(rotary)
    exact = torch.cat((exact, exact), -1)
    for index, function in enumerate((torch.cos, torch.sin)):
        assert moved[index].shape == usual[index].shape
        assert moved[index].dtype == torch.float32
        up, down = (function(exact * (1 + sign * HALF_ULP)).float() for sign in (1, -1))
        got = moved[index][0]
        assert ((got == up) | (got == down)).all()
        if index:
            assert (got != up).any()
            assert (got != down).any()  # both directions are taken
        torch.testing.assert_close(got, usual[index][0], rtol=0, atol=5e-5)


def test_position_0_stays_exact(rotary: nn.Module) -> None:
    with angles_rounded_otherwise(rotary):
        cos, sin = angles(rotary, POSITIONS)
    assert (cos[:, 0] == 1).all()
    assert (sin[:, 0] == 0).all()


def test_the_same_angles_each_time(rotary: nn.Module) -> None:
    with angles_rounded_otherwise(rotary):
        first, second = angles(rotary, POSITIONS), angles(rotary, POSITIONS)
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("raises", [False, True])
def test_hooks_are_removed(rotary: nn.Module, raises: bool) -> None:
    before = angles(rotary, POSITIONS)

    def use() -> None:
        with angles_rounded_otherwise(rotary):
            assert not torch.equal(angles(rotary, POSITIONS)[1], before[1])
            if raises:
                raise KeyError

    if raises:
        with pytest.raises(KeyError):
            use()
    else:
        use()
    assert not rotary._forward_hooks
    assert torch.equal(angles(rotary, POSITIONS)[1], before[1])


SCALED: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}
FAMILY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "vocab_size": 101,
    "max_position_embeddings": 256,
}


@pytest.mark.parametrize(
    "changes",
    [
        *({"model_type": "llama", "rope_scaling": scaling} for scaling in SCALED.values()),
        {"model_type": "gemma3_text", "sliding_window": 8},  # a table per type of layer
        {"model_type": "cohere"},  # pairs of neighbours
        {"model_type": "phi3", "pad_token_id": 0},
    ],
    ids=lambda changes: str(changes.get("rope_scaling", changes)).replace("'", "")[:40],
)
def test_every_kind_of_rope_is_moved_by_half_an_ulp_of_its_angle(changes: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    config = reference_config({**FAMILY, **changes})
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    given = {"input_ids": torch.arange(40)[None] % 100, "use_cache": False}
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    rotary = next(module for module in model.modules() if is_rotary(module))
    rotary.register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        model(**given)
        plain, seen[:] = list(seen), []
        # The hook that is registered later sees what the first one has returned.
        with angles_rounded_otherwise(model):
            last = rotary.register_forward_hook(lambda *call: seen.append(call[-1]))
            model(**given)
            last.remove()
    moved = seen[1::2]
    assert len(plain) == len(moved) > 0
    furthest = 40 * HALF_ULP * 2
    for before, after in zip(plain, moved, strict=True):
        for one, other in zip(before, after, strict=True):
            assert one.shape == other.shape
            assert not torch.equal(one, other)
            torch.testing.assert_close(one, other, rtol=0, atol=furthest)
            assert torch.equal(one[:, 0], other[:, 0]), "position 0 has no angle"
