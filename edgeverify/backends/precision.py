"""Lets the Hugging Face model compute in float64, or as another right float32 implementation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgeverify.backends import float32
from edgeverify.backends.float64 import Float64Mode, exact_tables, is_rotary, widened
from edgeverify.backends.widened_tables import head_widened, rows_widened


def base_of(model: PreTrainedModel) -> Any:
    return getattr(model, model.base_model_prefix)


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    return list(base_of(model).layers)


def outside_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """Returns the parts that are not blocks: embedding, rotary table, final norm, LM head."""
    parts = [child for child in base_of(model).children() if not isinstance(child, nn.ModuleList)]
    head = model.get_output_embeddings()
    return parts if head is None else [*parts, head]


@contextmanager
def exact(model: PreTrainedModel) -> Iterator[None]:
    """Lets the model compute in float64; it is unchanged afterwards."""
    with ExitStack() as stack:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        stack.enter_context(rows_widened(table))
        if head is not None:
            stack.enter_context(head_widened(head))
        for module in (*blocks_of(model), *outside_blocks(model)):
            if module is not table and module is not head:
                _widen_while_running(module, stack)
        stack.enter_context(_exact_constants(model))
        stack.enter_context(Float64Mode())
        yield


@contextmanager
def otherwise(model: PreTrainedModel, *, sequential: bool, linear: bool = True) -> Iterator[None]:
    """Lets the model compute as another correct float32 implementation; see ``run_otherwise``."""
    sums = float32.SequentialSums(linear=linear) if sequential else nullcontext()
    with float32.angles_rounded_otherwise(model), sums:
        yield


@contextmanager
def redrawn(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Lets the model compute with one draw of the roundings that are free; see ``run_redrawn``."""
    with float32.angles_rounded_otherwise(model, seed), float32.RoundedAtRandom(seed):
        yield


def _widen_while_running(module: nn.Module, stack: ExitStack) -> None:
    """Keeps the module in float64 from just before its forward until just after it."""
    open_contexts: list[ExitStack] = []

    def before(_: nn.Module, args: Any) -> None:
        context = ExitStack()
        # Widening copies narrow data on purpose; the mode would refuse to handle it.
        with torch.utils._python_dispatch._disable_current_modes():
            context.enter_context(widened(module))
        open_contexts.append(context)

    def after(_: nn.Module, args: Any, output: Any) -> None:
        open_contexts.pop().close()

    for handle in (
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after),
    ):
        stack.callback(handle.remove)
    stack.callback(_close_all, open_contexts)


def _close_all(contexts: list[ExitStack]) -> None:
    for context in contexts:
        context.close()


@contextmanager
def _exact_constants(model: PreTrainedModel) -> Iterator[None]:
    """Replaces constants that transformers rounds to float32 by their float64 values.

    These are RoPE's inverse frequencies and Gemma's embedding scale.
    """
    exact: list[tuple[nn.Module, str, torch.Tensor]] = []
    for module in model.modules():
        if is_rotary(module):
            exact += ((module, name, table) for name, table in exact_tables(module).items())
        if "embed_scale" in module._buffers:
            scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
            exact.append((module, "embed_scale", scale))
    # A scaled table is replaced while the model runs, so all that a module holds is kept.
    owners = {id(module): module for module, _, _ in exact}.values()
    originals = [(module, dict(module.__dict__), dict(module._buffers)) for module in owners]
    for module, name, value in exact:
        (module._buffers if name in module._buffers else module.__dict__)[name] = value
    try:
        yield
    finally:
        for module, attributes, buffers in originals:
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
