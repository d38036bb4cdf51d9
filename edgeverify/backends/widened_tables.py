"""Runs an embedding table and an LM head in float64, without a float64 copy of either.

Gemma's table of 256000 tokens is a quarter of its model: 2.4 GB in float32, 4.7 GB in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from edgeverify.core.store.mapped import forget

# Number of LM head weights that are widened at a time: 128 MiB in float64.
PIECE = 1 << 24


@contextmanager
def rows_widened(table: nn.Embedding) -> Iterator[None]:
    """Makes an embedding look its rows up in a float64 table that has only these rows.

    Args:
        table: float32; the module and its subclasses are called with token ids and look them up
            in ``weight``.
    """
    weight, padding = table.weight.data, table.padding_idx

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        with _disable_current_modes():
            rows, places = torch.unique(args[0], return_inverse=True)
            table.weight.data = weight[rows].to(torch.float64)
            forget(weight)
        table.padding_idx = None  # an index into the whole table; only gradients use it
        return (places, *args[1:])

    def restore() -> None:
        table.weight.data, table.padding_idx = weight, padding

    handles = (
        table.register_forward_pre_hook(before),
        table.register_forward_hook(lambda *_: restore()),
    )
    try:
        yield
    finally:
        restore()
        for handle in handles:
            handle.remove()


class head_widened(TorchFunctionMode):  # noqa: N801 - a context, as ``rows_widened`` is
    """Makes a linear layer compute in float64, ``PIECE`` weights at a time.

    It replaces the product itself, not the layer's forward, because the control of a quantized
    file rounds the layer's input in that forward.

    Args:
        head: float32.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self._head = head
        self._rows = max(1, PIECE // head.in_features)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear and len(args) > 1 and args[1] is self._head.weight:
            return self._in_pieces(args[0])
        return func(*args, **(kwargs or {}))

    def _in_pieces(self, x: torch.Tensor) -> torch.Tensor:
        head = self._head
        # Logits of a long conversation are larger than the head, so they are written only once.
        logits = x.new_empty((*x.shape[:-1], head.out_features))
        for start in range(0, head.out_features, self._rows):
            piece = slice(start, start + self._rows)
            with _disable_current_modes():
                weight = head.weight.data[piece].to(torch.float64)
                forget(head.weight.data[piece])
                bias = None if head.bias is None else head.bias.data[piece].to(torch.float64)
            logits[..., piece] = functional.linear(x, weight, bias)
        return logits
