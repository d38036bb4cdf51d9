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

from edgeverify.backends.float64 import exact_frequencies, is_rotary, rope_type

HALF_ULP = 2.0**-24
# In half ulps. Measured on normal inputs: XNNPACK's tanh errs by up to 4.3, its SiLU by up to 3.9,
# PyTorch's by up to 1.0 and 2.3.
FUNCTION_HALF_ULPS = 4.0


class RoundedAtRandom(TorchFunctionMode):
    """Makes one of many equally right float32 runs: other orders of sums, other roundings.

    Each layer that sums does so in an order drawn at random. The order decides an error most where
    one term is much larger than all others: each term that is added after it costs a rounding of
    the large one. The sum of two tensors is rounded up or down at random, to the nearer
    neighbour more often (stochastic rounding), because the parts of a residual stream may be added
    in several orders. Functions such as tanh err by up to ``FUNCTION_HALF_ULPS``.

    Args:
        seed: of the draws.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            if func in _SUMS_OF_TWO and not kwargs and all(map(_is_float32, args)):
                return self._rounded(func(*(given.double() for given in args)))
            if args and _is_float32(args[0]):
                if func is functional.gelu:
                    return self._gelu(*args, **kwargs)
                if func is functional.layer_norm:
                    return self._layer_norm(*args, **kwargs)
                if func in _FUNCTIONS:
                    return self._moved(func(*args, **kwargs))
            if func in _REORDERED:
                args, kwargs = _REORDERED[func](self._order, *args, **kwargs)
            return func(*args, **kwargs)

    def _order(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self._generator)

    def _moved(self, value: torch.Tensor) -> torch.Tensor:
        drawn = torch.rand(value.shape, generator=self._generator, dtype=torch.float64)
        return (value.double() * (1 + FUNCTION_HALF_ULPS * HALF_ULP * (2 * drawn - 1))).float()

    def _gelu(self, x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
        """x/2 · (1 + erf(x/√2)), or its tanh approximation; 1 + erf cancels where x is negative."""
        if approximate == "tanh":
            inner = self._moved(torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
        else:
            inner = self._moved(torch.erf(x * 0.5**0.5))
        return self._rounded(0.5 * x.double() * self._rounded(1 + inner.double()).double())

    def _layer_norm(
        self,
        x: torch.Tensor,
        normalized_shape: Any,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        order = self._order(x.shape[-1])
        weight, bias = (None if part is None else part[order] for part in (weight, bias))
        out = functional.layer_norm(x[..., order], normalized_shape, weight, bias, eps)
        return out[..., torch.argsort(order)]

    def _rounded(self, exact: torch.Tensor) -> torch.Tensor:
        nearest = exact.float()
        off = exact - nearest.double()
        other = torch.nextafter(nearest, torch.where(off > 0, torch.inf, -torch.inf).float())
        chance = (off / (other.double() - nearest.double())).nan_to_num(0.0)
        drawn = torch.rand(exact.shape, generator=self._generator, dtype=torch.float64)
        return torch.where(drawn < chance, other, nearest)


Order = Callable[[int], torch.Tensor]
Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
_SUMS_OF_TWO = frozenset({torch.Tensor.add, torch.Tensor.sub, torch.add, torch.sub})
_FUNCTIONS = frozenset(
    {
        torch.tanh,
        torch.Tensor.tanh,
        torch.sigmoid,
        torch.Tensor.sigmoid,
        torch.softmax,
        torch.Tensor.softmax,
        functional.softmax,
        functional.silu,
    }
)


def _is_float32(given: Any) -> bool:
    return isinstance(given, torch.Tensor) and given.dtype == torch.float32


def _linear_reordered(
    order: Order, x: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any
) -> Arguments:
    chosen = order(x.shape[-1])
    return (x[..., chosen], weight[:, chosen], *args), kwargs


def _product_reordered(order: Order, a: torch.Tensor, b: torch.Tensor, **kwargs: Any) -> Arguments:
    if b.dim() < 2:
        return (a, b), kwargs
    chosen = order(a.shape[-1])
    return (a[..., chosen], b[..., chosen, :]), kwargs


def _mean_reordered(order: Order, x: torch.Tensor, *args: Any, **kwargs: Any) -> Arguments:
    dim = args[0] if args else kwargs.get("dim")
    if not isinstance(dim, int):
        return (x, *args), kwargs
    return (x.index_select(dim, order(x.shape[dim])), *args), kwargs


_REORDERED: dict[Any, Callable[..., Arguments]] = {
    functional.linear: _linear_reordered,
    torch.matmul: _product_reordered,
    torch.Tensor.matmul: _product_reordered,
    torch.Tensor.mean: _mean_reordered,
    torch.mean: _mean_reordered,
}


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
def angles_rounded_otherwise(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Replaces the output of RoPE modules: moves each angle by half an ulp, up or down.

    Rounding an angle once costs half an ulp, relative to the angle. The signs are drawn at random,
    so every row gets a typical error instead of an unusually small or large one. RoPE of the
    default type is computed exactly before; of the other types, the module's own angles are moved.

    Args:
        model: a Hugging Face model; its RoPE modules hold tables of inverse frequencies and are
            called with (hidden states, position ids) and perhaps a type of layer.
        seed: of the signs.
    """
    handles = []

    def replace(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        given = [*args, *kwargs.values()]
        table = _table_of(module, given)
        if table is None:
            return output
        spread = _spread(output[0], table.numel())
        positions = next(part for part in given if _is_positions(part)).double()
        plain = "inv_freq" in module._buffers and rope_type(module) == "default"
        exact = positions[:, :, None] * (exact_frequencies(module) if plain else table.double())
        generator = torch.Generator().manual_seed(seed)
        # In float64, because 1 + half an ulp is 1 in float32.
        signs = torch.randint(0, 2, exact.shape, generator=generator).double() * 2 - 1
        moved = spread(exact * HALF_ULP * signs)
        dtype = output[0].dtype
        if plain:
            moved = spread(exact) + moved
            scaling = getattr(module, "attention_scaling", 1.0)
            return (moved.cos() * scaling).to(dtype), (moved.sin() * scaling).to(dtype)
        cos, sin = (part.double() for part in output)
        turned = cos * moved.cos() - sin * moved.sin(), sin * moved.cos() + cos * moved.sin()
        return turned[0].to(dtype), turned[1].to(dtype)

    for module in model.modules():
        if is_rotary(module):
            handles.append(module.register_forward_hook(replace, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _table_of(module: nn.Module, given: list[Any]) -> torch.Tensor | None:
    """Returns the inverse frequencies of a call: of the type of layer that it names, if any."""
    kind = next((part for part in given if isinstance(part, str)), None)
    return module._buffers.get("inv_freq" if kind is None else f"{kind}_inv_freq")


def _is_positions(given: Any) -> bool:
    return isinstance(given, torch.Tensor) and not given.is_floating_point() and given.dim() == 2


def _spread(cos: torch.Tensor, pairs: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns how a value per pair is laid out over the elements: once, in halves or in turns."""
    if cos.shape[-1] == pairs:
        return lambda values: values
    if torch.equal(cos[..., :pairs], cos[..., pairs:]):
        return lambda values: torch.cat((values, values), dim=-1)
    return lambda values: values.repeat_interleave(2, dim=-1)
