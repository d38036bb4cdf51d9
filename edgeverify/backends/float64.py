"""Runs a float32 PyTorch model in float64 throughout: the oracle.

``model.double()`` is not enough, because modules cast to float32 on their own: RMSNorm's
``x.float()``, softmax's ``dtype=torch.float32``, RoPE's ``torch.arange(..., dtype=torch.float32)``.
Here every dtype argument below float64 becomes float64 when the operation is dispatched. An
operation that still returns a narrower float raises an error, so a run that is not fully float64
cannot pass as an oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from edgeverify.core.store.mapped import forget

NARROW = (torch.float32, torch.float16, torch.bfloat16)
_TORCH_FIELDS = ("_parameters", "_buffers", "_modules")


class Float64Mode(TorchDispatchMode):
    """Turns narrower float dtype arguments into float64 and refuses narrower float results.

    While it is active, the default dtype is float64 as well, for tensors created without a dtype.
    """

    def __enter__(self) -> Float64Mode:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        self._factories = _WideFactories()
        self._factories.__enter__()
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self._factories.__exit__(*args)
        torch.set_default_dtype(self._default)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*tree_map(_widen_dtype, args), **tree_map(_widen_dtype, dict(kwargs or {})))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.dtype in NARROW:
                raise RuntimeError(f"{func} computed in {leaf.dtype} inside the float64 oracle")
        return out


class _WideFactories(TorchFunctionMode):
    """Makes float64 tensors where Python numbers are given with a narrower dtype.

    ``torch.tensor([0.1], dtype=torch.float32)`` rounds before anything is dispatched, so that
    ``Float64Mode`` itself would come too late: LongRoPE's factors are made so.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor):
            kwargs = {key: _widen_dtype(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


def _widen_dtype(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value


def _is_narrow(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in NARROW


@contextmanager
def widened(module: nn.Module) -> Iterator[None]:
    """Keeps the module's float parameters, buffers and plain tensor attributes in float64.

    Attributes may contain the tensors in dicts, lists and tuples. On exit the original narrower
    tensors are restored, not rounded again, so storage shared with a checkpoint stays shared.
    """
    wide: dict[int, torch.Tensor] = {}

    def double(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in wide:
            wide[id(tensor)] = tensor.detach().to(torch.float64)
        return wide[id(tensor)]

    parameters: list[tuple[nn.Parameter, torch.Tensor]] = []
    slots: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for parameter in module.parameters():
            if _is_narrow(parameter):
                narrow = parameter.data
                parameters.append((parameter, narrow))
                parameter.data = narrow.to(torch.float64)
                forget(narrow)
        for owner in module.modules():
            attributes = {k: v for k, v in owner.__dict__.items() if k not in _TORCH_FIELDS}
            for held, values in ((owner._buffers, owner._buffers), (owner.__dict__, attributes)):
                for name, value in list(values.items()):
                    if any(map(_is_narrow, tree_leaves(value))):
                        slots.append((held, name, value))
                        held[name] = tree_map(lambda v: double(v) if _is_narrow(v) else v, value)
        yield
    finally:
        for held, name, value in reversed(slots):
            held[name] = value
        for parameter, narrow in parameters:
            parameter.data = narrow


def rope_type(module: Any) -> str:
    """Returns the RoPE type of a Hugging Face rotary module; ``default`` if its config has none."""
    parameters = getattr(module.config, "rope_parameters", None) or {}
    return str(parameters.get("rope_type", "default"))


def exact_tables(module: Any) -> dict[str, torch.Tensor]:
    """Computes the float tables of a Hugging Face rotary module in float64, from its config.

    The module's own constructor makes them again, in float64 throughout: one table per type of
    layer, and scaled ones, as the family has them.

    Returns:
        Name of a buffer or attribute → its table, in float64.
    """
    with Float64Mode():
        twin = type(module)(module.config)
    found = {}
    for name, narrow in _float_tensors(module).items():
        wide = _float_tensors(twin).get(name)
        if wide is not None and wide.shape == narrow.shape:
            found[name] = wide
    return found


def _float_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    held = {**module.__dict__, **module._buffers}
    return {
        name: value
        for name, value in held.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }


def is_rotary(module: nn.Module) -> bool:
    """Whether a Hugging Face module holds tables of RoPE's inverse frequencies."""
    return hasattr(module, "config") and any(name.endswith("inv_freq") for name in module._buffers)


def exact_frequencies(module: Any) -> torch.Tensor:
    """Computes the inverse frequencies of a Hugging Face rotary module in float64 from its config.

    Returns:
        (D/2,) float64.
    """
    kind = rope_type(module)
    if kind == "default":
        compute = module.compute_default_rope_parameters
    else:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        compute = ROPE_INIT_FUNCTIONS[kind]
    with Float64Mode():
        return compute(module.config)[0]
