"""How the control rounds activations, against integers computed one by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeverify.backends.float64 import Float64Mode
from edgeverify.backends.widened_tables import head_widened
from edgeverify.legs.quantization.control import asymmetric, rounded_inputs, rounding, symmetric


def _by_hand(row: np.ndarray) -> np.ndarray:
    """XNNPACK's steps for one row, in float64: scale, zero point of the nearer end, integers."""
    low, high = min(row.min(), 0.0), max(row.max(), 0.0)
    scale = (high - low) / 255
    from_low, from_high = -128 - low / scale, 127 - high / scale
    error_low, error_high = abs(-128 + low / scale), abs(127 + high / scale)
    zero = np.clip(np.round(from_low if error_high > error_low else from_high), -128, 127)
    return (np.clip(np.round(row / scale) + zero, -128, 127) - zero) * scale


@pytest.mark.parametrize("shift", [-3.0, -0.4, 0.0, 0.7, 5.0])
def test_asymmetric_rounding_is_the_kernels(shift: float) -> None:
    rows = torch.randn(7, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rows += shift
    wanted = np.stack([_by_hand(row) for row in rows.numpy()])
    np.testing.assert_allclose(asymmetric(rows).numpy(), wanted, atol=1e-12)


def test_symmetric_rounding_has_127_steps_to_the_largest_magnitude() -> None:
    rows = torch.randn(5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    scale = rows.abs().amax(-1, keepdim=True) / 127
    steps = symmetric(rows) / scale
    assert torch.allclose(steps, steps.round(), atol=1e-9)
    assert (steps.abs().amax(-1) - 127).abs().max() < 1e-9
    assert ((symmetric(rows) - rows).abs() <= scale / 2 * (1 + 1e-9)).all()


@pytest.mark.parametrize("rounds", [asymmetric, symmetric])
def test_a_row_of_zeros_stays_zero_and_rows_do_not_share_a_scale(rounds: Any) -> None:
    rows = torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 0.5], [1e-6, 2e-6, -1e-6]])
    out = rounds(rows)
    assert (out[0] == 0).all()
    assert out[2].abs().max() > 1e-6, "a small row was rounded with a large row's scale"


@pytest.mark.parametrize(
    ("kernel", "granularity", "asked_for", "wanted"),
    [
        ("xnnpack", "channel", False, asymmetric),
        ("xnnpack", "block", False, asymmetric),
        ("builtin", "channel", False, symmetric),
        ("builtin", "channel", True, asymmetric),
        ("reference", "channel", False, symmetric),
        ("reference", "channel", True, asymmetric),
        ("builtin", "block", False, asymmetric),
    ],
)
def test_each_kernel_has_its_rounding(
    kernel: str, granularity: str, asked_for: bool, wanted: Any
) -> None:
    kept = SimpleNamespace(granularity=granularity)
    weight: Any = SimpleNamespace(quantized=kept, asymmetric=asked_for)
    assert rounding(kernel, weight) is wanted


def test_a_layer_is_rounded_for_a_while_and_hooks_see_what_it_was_given() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    seen = []
    model[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    x = torch.tensor([[0.3, -0.2, 0.111, 0.05]])
    before = model(x)
    with rounded_inputs(model, [("0", symmetric)]):
        rounded = model(x)
    assert torch.equal(rounded, nn.functional.linear(symmetric(x), model[0].weight))
    assert not torch.equal(rounded, before)
    assert torch.equal(seen[1], x)
    assert torch.equal(model(x), before)


def test_what_is_no_linear_layer_is_refused_and_nothing_stays_changed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with (
        pytest.raises(TypeError, match="1 is a LayerNorm"),
        rounded_inputs(model, [("0", symmetric), ("1", symmetric)]),
    ):
        pass
    assert "forward" not in vars(model[0])


@pytest.mark.parametrize("piece", [8, 1 << 24])
def test_the_input_of_a_head_that_is_widened_in_pieces_is_rounded_too(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle takes its LM head in pieces; the control runs as the oracle does."""
    monkeypatch.setattr("edgeverify.backends.widened_tables.PIECE", piece)
    model = nn.Sequential(nn.Linear(4, 7, bias=piece > 8))
    x = torch.randn(1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    weight = model[0].weight.data.to(torch.float64)
    bias = 0.0 if model[0].bias is None else model[0].bias.data.to(torch.float64)
    with torch.no_grad(), rounded_inputs(model, [("0", asymmetric)]):
        with head_widened(model[0]), Float64Mode():  # type: ignore[arg-type]
            out = model(x)
        assert "forward" in vars(model[0]), "the rounding was taken away"
    np.testing.assert_allclose(out, asymmetric(x) @ weight.T + bias, rtol=1e-12)
