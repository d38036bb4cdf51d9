"""What small modules are, told by what they compute."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from edgeverify.audits import probe


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (functional.silu, "silu"),
        (ACT2FN["silu"], "silu"),
        (functional.gelu, "gelu"),
        (nn.GELU(approximate="tanh"), "gelu (tanh form)"),
        (ACT2FN["gelu_new"], "gelu (tanh form)"),  # another formula of it
        (ACT2FN["quick_gelu"], "gelu (quick form)"),
        (functional.relu, "relu"),
        (nn.Identity(), "none"),
        (torch.tanh, probe.ANOTHER),
        (functional.leaky_relu, probe.ANOTHER),
        (lambda x: x * torch.sigmoid(1.7 * x), probe.ANOTHER),
        (lambda x: functional.silu(x) + 5e-6, "silu"),  # further than formulas of one function are
        (lambda x: functional.silu(x) + 2e-5, probe.ANOTHER),
        (lambda x: functional.silu(x) * (1 + 9e-6), probe.ANOTHER),  # 3.5e-5 at 4
    ],
)
def test_an_activation_is_told_by_its_values(
    function: Callable[[torch.Tensor], torch.Tensor], name: str
) -> None:
    assert probe.activation(function) == (name, False)

    def gated(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, -1)
        return function(gate) * up

    assert probe.activation(gated) == (name, True)


def test_halves_taken_the_other_way_round_are_another_function() -> None:
    def exchanged(x: torch.Tensor) -> torch.Tensor:
        up, gate = x.chunk(2, -1)
        return functional.silu(gate) * up

    assert probe.activation(exchanged) == (probe.ANOTHER, True)


class Gemma(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), -3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + self.weight)


def layer_norm() -> nn.Module:
    norm = nn.LayerNorm(8)
    nn.init.constant_(norm.weight, -2.0)
    nn.init.constant_(norm.bias, 50.0)
    return norm


def rms_norm() -> nn.Module:
    norm = nn.RMSNorm(8)
    nn.init.constant_(norm.weight, -2.0)
    return norm


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("norm", "kind", "adds_one"),
    [(layer_norm, "LayerNorm", False), (rms_norm, "RMSNorm", False), (Gemma, "RMSNorm", True)],
)
def test_a_norm_is_told_by_what_it_does_whatever_its_weights_are(
    norm: Callable[[], nn.Module], kind: str, adds_one: bool, device: str
) -> None:
    made = norm().to(device)
    assert probe.norm_kind(made) == kind
    assert probe.norm_adds_one(made) == adds_one


def test_a_layer_norm_is_told_with_as_few_as_two_values() -> None:
    assert probe.norm_kind(nn.LayerNorm(2)) == "LayerNorm"


def test_a_norm_without_weights_cannot_be_tried() -> None:
    for read in (probe.norm_kind, probe.norm_adds_one):
        with pytest.raises(ValueError, match=r"^it has no weights to tell its width by$"):
            read(nn.LayerNorm(4, elementwise_affine=False))


def test_an_epsilon_has_one_of_three_names_and_is_a_number() -> None:
    for name in ("eps", "variance_epsilon", "epsilon"):
        assert probe.norm_eps(SimpleNamespace(**{name: 1e-6})) == 1e-6  # type: ignore[arg-type]
    found = probe.norm_eps(SimpleNamespace(eps=None, epsilon=1))  # type: ignore[arg-type]
    assert (found, type(found)) == (1.0, float)
    assert probe.norm_eps(SimpleNamespace(eps="1e-6")) is None  # type: ignore[arg-type]
    assert probe.norm_eps(nn.Identity()) is None


def test_the_first_attribute_that_is_there_is_taken() -> None:
    owner: Any = SimpleNamespace(a=None, b=0, c=2)
    assert probe.first(owner, "x", "a", "b", "c") == 0
    assert probe.first(owner, "x", "a") is None
    assert probe.first(None, "a") is None


def test_biases_are_of_all_of_none_or_of_some() -> None:
    having, lacking = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    assert probe.has_bias(having, having) == "yes"
    assert probe.has_bias(lacking, nn.Identity()) == "no"
    assert probe.has_bias(having, lacking) == "some"
    assert probe.has_bias() == "no"
