"""Runs a float32 PyTorch model as another correct float32 implementation would.

Any float32 implementation is free to choose two things, and they decide how far it is from the
oracle:

- *the order of summation.* PyTorch's matrix products sum in blocks; LiteRT's kernels (including
  XNNPACK's f32-gemm) add one product after another. Measured on random data, in units of 2^-24:
  4.2 to 4.5 in blocks at every width; one after another 7.2 at 576, 13.6 at 2048, 22.5 at 5632.
- *the rounding of RoPE's angles.* Position times frequency is rounded to float32, and the
  frequency was rounded before. At position 70 this moves an angle by up to 4e-6, far more than all
  other errors in that row. Which positions round well is chance, and differs between formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edgeverify.backends.float64 import exact_frequencies, rope_type

HALF_ULP = 2.0**-24


class SequentialSums(TorchFunctionMode):
    """Sums in float32 one product, or one element, after another, in every layer that sums.

    It replaces linear layers, matrix products, means over one axis and LayerNorm.

    Args:
        linear: whether linear layers are replaced, which takes nearly all of the time.
    """

    def __init__(self, *, linear: bool = True) -> None:
        super().__init__()
        self._kept = () if linear else (functional.linear,)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        replacement = None if func in self._kept else _REPLACEMENTS.get(func)
        with torch._C.DisableTorchFunction():
            return (replacement or func)(*args, **(kwargs or {}))


def _linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    out = _product(x.reshape(-1, x.shape[-1]), weight.T.contiguous())
    out = out.reshape(*x.shape[:-1], -1)
    return out if bias is None else out + bias


def _matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.dim() == b.dim() == 2:
        return _product(a, b)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a = a.expand(*batch, *a.shape[-2:]).reshape(-1, *a.shape[-2:])
    b = b.expand(*batch, *b.shape[-2:]).reshape(-1, *b.shape[-2:])
    out = torch.zeros(a.shape[0], a.shape[1], b.shape[2])
    for k in range(a.shape[2]):
        out.baddbmm_(a[:, :, k : k + 1], b[:, k : k + 1])
    return out.reshape(*batch, *out.shape[1:])


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(a.shape[0], b.shape[1])
    for k in range(a.shape[1]):
        out.addmm_(a[:, k : k + 1], b[k : k + 1])
    return out


def _mean(x: torch.Tensor, dim: int = -1, keepdim: bool = False, **_: Any) -> torch.Tensor:
    columns = x.movedim(dim, 0).contiguous()
    total = torch.zeros_like(columns[0])
    for column in columns:
        total += column
    mean = total / columns.shape[0]
    return mean.unsqueeze(dim) if keepdim else mean


def _layer_norm(
    x: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    centred = x - _mean(x, -1, keepdim=True)
    out = centred * torch.rsqrt(_mean(centred**2, -1, keepdim=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    functional.linear: _linear,
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.mean: _mean,
    torch.mean: _mean,
    functional.layer_norm: _layer_norm,
}


@contextmanager
def angles_rounded_otherwise(model: nn.Module) -> Iterator[None]:
    """Replaces the output of RoPE modules: moves each exact angle by half an ulp, up or down.

    Rounding an angle once costs half an ulp, relative to the angle. The signs are drawn with a
    fixed seed, so every row gets a typical error instead of an unusually small or large one.

    Args:
        model: a Hugging Face model; its RoPE modules have ``inv_freq`` and are called with
            (hidden states, position ids). RoPE types other than the default are not changed.
    """
    handles = []

    def replace(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        positions = kwargs.get("position_ids", args[-1]).double()
        exact = positions[:, :, None] * exact_frequencies(module)
        generator = torch.Generator().manual_seed(0)
        # In float64, because 1 + half an ulp is 1 in float32.
        signs = torch.randint(0, 2, exact.shape, generator=generator).double() * 2 - 1
        moved = exact * (1 + HALF_ULP * signs)
        moved = torch.cat((moved, moved), dim=-1)
        scaling = getattr(module, "attention_scaling", 1.0)
        dtype = output[0].dtype
        return (moved.cos() * scaling).to(dtype), (moved.sin() * scaling).to(dtype)

    for module in model.modules():
        if "inv_freq" in module._buffers and rope_type(module) == "default":
            handles.append(module.register_forward_hook(replace, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
