"""Records every intermediate value of the re-authored model in float64, with its module.

The converter translates PyTorch's core operators one by one. The operators of a correct file
therefore have these values, apart from what the converter moves, merges or splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgeverify.backends import reauthored
from edgeverify.core.case import Case


@dataclass(frozen=True)
class ModelValue:
    """One intermediate value.

    Attributes:
        module: path of the innermost running module, ``transformer_blocks.2.ff.w2``; "" for the
            model itself.
        op: PyTorch's name of the operator that made it, ``aten.mul.Tensor``.
        array: float64, integer or boolean.
    """

    module: str
    op: str
    array: np.ndarray


@dataclass
class StepValues:
    """The values that one step computes.

    Attributes:
        inputs: the file's input names → arrays: tokens, positions, caches, masks.
        values: in the order of the computation.
    """

    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    values: list[ModelValue] = field(default_factory=list)


def record(
    model: nn.Module,
    case: Case,
    steps: set[str],
) -> dict[str, StepValues]:
    """Runs the case in float64 and records every value of some of its steps.

    Args:
        model: the re-authored model; unchanged after the run.
        case: as for ``backends.reauthored.run``.
        steps: names of the steps to record.

    Returns:
        Step → its inputs and values, pad rows included.

    Raises:
        PortError: the model raises while it runs.
    """
    needed = max(index for index, step in enumerate(case.steps) if step.name in steps)
    shortened = replace(case, steps=case.steps[: needed + 1])
    recorder = _Recorder()
    found: dict[str, StepValues] = {}
    order = iter(shortened.steps)

    def before(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        name = next(order).name
        recorder.into = None
        if name in steps:
            found[name] = StepValues(_inputs(kwargs))
            recorder.into = found[name].values

    with ExitStack() as stack:
        stack.enter_context(_module_paths(model, recorder))
        handle = model.register_forward_pre_hook(before, with_kwargs=True)
        stack.callback(handle.remove)
        # Of the attention kernels, only this one consists of operators that can be recorded.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(recorder)
        reauthored.run(model, shortened, dtype=torch.float64)
    return found


def _inputs(kwargs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    inputs = {"tokens": kwargs["tokens"], "input_pos": kwargs["input_pos"]}
    for index, entry in enumerate(kwargs["kv_cache"].caches):
        inputs[f"kv_cache_k_{index}"] = entry.k_cache
        inputs[f"kv_cache_v_{index}"] = entry.v_cache
    mask = kwargs.get("mask")
    if isinstance(mask, Mapping):
        inputs |= {f"mask_{kind}": tensor for kind, tensor in mask.items()}
    elif mask is not None:
        inputs["mask"] = mask
    return {name: tensor.numpy().copy() for name, tensor in inputs.items()}


class _Recorder(TorchDispatchMode):
    """Records what every core operator returns; decomposes other operators first."""

    def __init__(self) -> None:
        super().__init__()
        self.into: list[ModelValue] | None = None
        self.modules: list[str] = [""]
        # A plain dict is needed: PyTorch's table overrides [] but not get().
        self.decompositions = dict(torch._decomp.core_aten_decompositions().items())
        # PyTorch counts these operators as core operators, but no file has them.
        self.decompositions |= torch._decomp.get_decompositions(
            [torch.ops.aten.native_layer_norm, torch.ops.aten.var_mean]
        )

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if self.into is None:
            return func(*args, **given)
        with self:
            parts: Callable[..., Any] = self.decompositions.get(func, func.decompose)
            out = parts(*args, **given)
        if out is not NotImplemented:
            return out
        out = func(*args, **given)
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.dtype != torch.bfloat16:
                array = leaf.detach().numpy().copy()
                self.into.append(ModelValue(self.modules[-1], str(func), array))
        return out


@contextmanager
def _module_paths(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Informs the recorder which module is running."""

    def leave(*_: Any) -> None:  # None, because a hook's return value replaces the output
        recorder.modules.pop()

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path:
                enter = lambda *_, path=path: recorder.modules.append(path)  # noqa: E731
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield
