"""Runs an existing float32 PyTorch model in float64 throughout: the oracle.

``model.double()`` is not enough: modules cast to float32 on their own (RMSNorm's ``x.float()``,
softmax's ``dtype=torch.float32``, RoPE's ``torch.arange(..., dtype=torch.float32)``). Here every
dtype argument below float64 is turned into float64 as it is dispatched, and an operation that
still yields a narrower float is an error, so an oracle that is not one cannot be taken for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NARROW = (torch.float32, torch.float16, torch.bfloat16)


class Float64Mode(TorchDispatchMode):
    """Turns narrower float dtype arguments into float64 and refuses narrower float results.

    While it is on, the default dtype is float64, too, for tensors that are made without one.
    """

    def __enter__(self) -> Float64Mode:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        torch.set_default_dtype(self._default)
        super().__exit__(*args)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        widen = lambda value: torch.float64 if value in NARROW else value  # noqa: E731
        is_dtype = lambda value: isinstance(value, torch.dtype)  # noqa: E731
        change = lambda value: widen(value) if is_dtype(value) else value  # noqa: E731
        out = func(*tree_map(change, args), **tree_map(change, dict(kwargs or {})))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.dtype in NARROW:
                raise RuntimeError(f"{func} computed in {leaf.dtype} inside the float64 oracle")
        return out


@contextmanager
def widened(module: nn.Module, *, recurse: bool = True) -> Iterator[None]:
    """Holds the module's float parameters, buffers and plain tensor attributes as float64.

    The narrower tensors are put back afterwards, not rounded again, so storage that is shared with
    a checkpoint stays shared.
    """
    restore: list[Callable[[], None]] = []
    seen: dict[int, torch.Tensor] = {}

    def double(tensor: torch.Tensor) -> torch.Tensor:
        return seen.setdefault(id(tensor), tensor.detach().to(torch.float64))

    modules = list(module.modules()) if recurse else [module]
    try:
        for owner in modules:
            for parameter in owner.parameters(recurse=False):
                if parameter.dtype in NARROW:
                    original = parameter.data
                    if id(parameter) in seen:
                        continue
                    parameter.data = seen.setdefault(id(parameter), original.to(torch.float64))
                    restore.append(lambda p=parameter, o=original: setattr(p, "data", o))
            for name, buffer in owner._buffers.items():
                if buffer is not None and buffer.dtype in NARROW:
                    restore.append(
                        lambda o=owner, n=name, b=buffer: o._buffers.__setitem__(n, b)
                    )
                    owner._buffers[name] = double(buffer)
            for name, value in list(vars(owner).items()):
                if isinstance(value, torch.Tensor) and value.dtype in NARROW:
                    restore.append(lambda o=owner, n=name, v=value: vars(o).__setitem__(n, v))
                    vars(owner)[name] = double(value)
        yield
    finally:
        for undo in reversed(restore):
            undo()
