"""Runs a model from memory-mapped weights, with about one module's weights in memory.

A module's pages are read when it runs and released after it has run. The results are the same, bit
by bit, because the same code computes on the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from edgeverify.core.store.mapped import forget, is_mapped, scratch

# Smaller tensors (norms, biases) stay in memory: a model has a few hundred of them.
LARGE_BYTES = 1 << 20


@contextmanager
def forgetting(model: nn.Module) -> Iterator[None]:
    """Releases the pages of each module's own parameters after the module has run."""
    handles = []

    def after(module: nn.Module, args: Any, output: Any) -> None:
        forget(*(p for p in module._parameters.values() if p is not None))

    for module in model.modules():
        own = [p for p in module._parameters.values() if p is not None]
        if any(is_mapped(parameter) for parameter in own):
            handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class FusingOnDisk(TorchFunctionMode):
    """Writes large tensors that are concatenated from others (q, k and v, say) to scratch files."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        return _on_disk(out, self._folder) if func in (torch.cat, torch.concat) else out


def put_on_disk(model: nn.Module, folder: Path, written: Collection[torch.Tensor] = ()) -> None:
    """Moves a model's large parameters that are not mapped into scratch files.

    Args:
        model: built from a mapped checkpoint.
        folder: where the scratch files go.
        written: tensors of the checkpoint that the port has written to. A mapping loses written
            values when its pages are released, so parameters inside these tensors are moved, too.
    """
    moved: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for parameter in model.parameters():
        lost = any(_lies_in(parameter, tensor) for tensor in written)
        if lost or not is_mapped(parameter):
            key = parameter.data_ptr(), parameter.shape
            if key not in moved:
                moved[key] = _on_disk(parameter.data, folder, always=lost)
            parameter.data = moved[key]


def _on_disk(tensor: torch.Tensor, folder: Path, *, always: bool = False) -> torch.Tensor:
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type != "cpu" or not size or (size < LARGE_BYTES and not always):
        return tensor
    moved = torch.from_numpy(scratch(size, folder)).view(tensor.dtype).view(tensor.shape)
    moved.copy_(tensor)
    forget(moved)
    return moved


def _lies_in(parameter: torch.Tensor, tensor: torch.Tensor) -> bool:
    begin = tensor.data_ptr()
    return begin <= parameter.data_ptr() < begin + tensor.numel() * tensor.element_size()
