"""Runs the Hugging Face model: in float32 step by step, and in float64 as the oracle.

The float32 run follows the case, chunk by chunk with a KV cache; its error against the oracle is
the noise floor. The oracle needs no steps: causal attention over the whole conversation gives
every row at once, and its own rounding error is 1e-9 of the floor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
)
from transformers.masking_utils import eager_mask

from edgeverify.backends.precision import base_of, blocks_of, exact, otherwise, redrawn
from edgeverify.core import taps
from edgeverify.core.case import Case, Step
from edgeverify.core.errors import CheckpointError
from edgeverify.core.trace import Trace
from edgeverify.hf.config import reference_config

ATTENTION = "edgeverify"
Record = dict[str, np.ndarray]
_RECORD: ContextVar[Record | None] = ContextVar("edgeverify_record", default=None)


def _tapped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Calls the family's own eager attention, and records q and the new rows of k and v.

    q, k, v have the shape (B, N, T, H); in k and v the rows of earlier steps come first.
    """
    record = _RECORD.get()
    if record is not None:
        rows = query.shape[2]
        for name, tensor in (("q", query), ("k", key), ("v", value)):
            new_rows = tensor[:, :, tensor.shape[2] - rows :].transpose(1, 2)
            record[taps.block(module.layer_idx, f"attn.{name}")] = _array(new_rows)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return eager(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(ATTENTION, _tapped_attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)


def build(hf_config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """Builds the reference in float32 around ``state`` and shares its storage.

    Raises:
        CheckpointError: a tensor is missing, left over or has another shape.
    """
    config = reference_config(hf_config)
    with torch.device("meta"):
        model_class = type(AutoModelForCausalLM.from_config(config))
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=torch.float32,
            attn_implementation=ATTENTION,
            output_loading_info=True,
        )
    except RuntimeError as error:  # raised for a tensor of another shape
        info = {"mismatched_keys": [str(error).strip().splitlines()[0]]}
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(kind):
            raise CheckpointError(
                f"the Hugging Face model reports {kind.replace('_', ' ')}: "
                f"{', '.join(sorted(map(str, info[kind]))[:6])}",
                expected="exactly the tensors that the config asks for",
                fix="check that config.json belongs to these weights",
            )
    return model.eval()


def run(
    model: PreTrainedModel,
    case: Case,
    *,
    inject: Trace | None = None,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Trace, Case]:
    """Runs the case in float32, step by step, unpadded, with a full-length KV cache.

    Args:
        model: from ``build``.
        case: what to run. If it is greedy, each decode step is fed with the argmax of the
            logits before it.
        inject: an oracle trace; each block (and the final norm) then receives the oracle's
            input, rounded to float32, instead of the output of the block before it.
        tick: called after each step.

    Returns:
        The trace, and the case with the decode tokens that were used.
    """
    trace = Trace(provenance={"backend": "reference", "dtype": "float32"})
    # A cache built without the config also keeps every row of sliding layers; only the mask decides
    # what they see.
    cache = DynamicCache()
    fed: list[int] = []
    token: int | None = None
    for step in case.steps:
        tokens: tuple[int, ...] = step.tokens
        if step.is_decode:
            if case.greedy and token is not None:
                tokens = (token,)
            fed.append(tokens[0])
        record: Record = {}
        with torch.inference_mode(), _recording(model, record, _inputs_of(step, inject)):
            output = model(
                input_ids=torch.tensor([tokens]),
                position_ids=torch.arange(step.start, step.end)[None],
                past_key_values=cache,
                use_cache=True,
            )
        # The logits' memory is not used again, so of all recorded tensors only they are not copied.
        record[taps.LOGITS] = output.logits.detach().numpy()
        for index, layer in enumerate(cache.layers):
            record[taps.kv(index, "k")] = _array(layer.keys.transpose(1, 2))
            record[taps.kv(index, "v")] = _array(layer.values.transpose(1, 2))
        token = int(record[taps.LOGITS][0, -1].argmax())
        for tap in taps.standard_taps(len(cache.layers)):
            trace.add(step.name, tap, record[tap])
        tick()
    return trace, case.with_decode_tokens(fed)


def run_oracle(model: PreTrainedModel, case: Case, *, inject: Trace | None = None) -> Trace:
    """Runs the whole conversation at once in float64 and cuts it into the case's steps.

    Modules are widened one by one as they run, so the float32 model and one float64 layer are
    in memory together, not two models. For the embedding table, only the rows that are looked up
    are widened; the LM head is widened one piece at a time.

    Args:
        model: from ``build``; unchanged after the run.
        case: with known decode tokens.
        inject: as in ``run``: inputs rounded to float32, everything else in float64.

    Returns:
        A trace of float64 arrays.
    """
    with exact(model):
        return _run_at_once(model, case, inject, np.float64)


def run_otherwise(
    model: PreTrainedModel,
    case: Case,
    *,
    inject: Trace | None = None,
    sequential: bool,
    linear: bool = True,
) -> Trace:
    """Runs the whole conversation at once, as another correct float32 implementation would.

    Args:
        model: from ``build``; unchanged after the run.
        case: with known decode tokens.
        inject: as in ``run``.
        sequential: whether sums add one term after another, as LiteRT's kernels do; RoPE's
            angles are rounded differently in both cases. See ``edgeverify.backends.float32``.
        linear: whether the sums of linear layers are sequential as well.
    """
    with otherwise(model, sequential=sequential, linear=linear):
        return _run_at_once(model, case, inject)


def run_redrawn(
    model: PreTrainedModel, case: Case, seed: int, *, inject: Trace | None = None
) -> Trace:
    """Runs the whole conversation at once, with one draw of the roundings that are free.

    Args:
        model: from ``build``; unchanged after the run.
        case: with known decode tokens.
        seed: of the draw; see ``float32.RoundedAtRandom`` and ``angles_rounded_otherwise``.
        inject: as in ``run``.
    """
    with redrawn(model, seed):
        return _run_at_once(model, case, inject)


def _run_at_once(
    model: PreTrainedModel, case: Case, inject: Trace | None, dtype: type = np.float32
) -> Trace:
    num_blocks = len(blocks_of(model))
    inputs = None
    if inject is not None:
        steps = [_inputs_of(step, inject, dtype) or [] for step in case.steps]
        inputs = [torch.cat(parts, dim=1) for parts in zip(*steps, strict=True)]
    record: Record = {}
    with torch.no_grad(), _recording(model, record, inputs):
        output = model(input_ids=torch.tensor([case.tokens]), use_cache=False)
        record[taps.LOGITS] = output.logits.detach().numpy()
    made = str(record[taps.LOGITS].dtype)
    trace = Trace(provenance={"backend": "reference", "dtype": made})
    for step in case.steps:
        for tap in taps.standard_taps(num_blocks):
            if tap.startswith("kv."):
                index = taps.block_index(tap)
                assert index is not None
                written = record[taps.block(index, f"attn.{tap[-1]}")]
                trace.add(step.name, tap, written[:, : step.end])
            else:
                trace.add(step.name, tap, record[tap][:, step.start : step.end])
    return trace


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().copy()


def _first(owner: nn.Module, *names: str) -> nn.Module:
    for name in names:
        part = getattr(owner, name, None)
        if isinstance(part, nn.Module):
            return part
    raise AttributeError(f"{type(owner).__name__} has none of {', '.join(names)}")


def _inputs_of(
    step: Step, oracle: Trace | None, dtype: type = np.float32
) -> list[torch.Tensor] | None:
    """Returns the oracle's input to each block, then to the final norm, rounded to float32."""
    if oracle is None:
        return None
    names = [taps.EMBED]
    while f"{step.name}/{taps.block(len(names) - 1, 'out')}" in oracle:
        names.append(taps.block(len(names) - 1, "out"))
    arrays = (oracle[f"{step.name}/{name}"].astype(np.float32) for name in names)
    return [torch.from_numpy(array.astype(dtype, copy=False)) for array in arrays]


@contextmanager
def _recording(
    model: PreTrainedModel, record: Record, inputs: list[torch.Tensor] | None
) -> Iterator[None]:
    """Hooks every tap except the KV cache and the logits; replaces block inputs by ``inputs``."""
    handles = []

    def hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        return args[0] if args else kwargs["hidden_states"]

    def on_input(module: nn.Module, tap: str) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            record[tap] = _array(hidden(args, kwargs))

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def on_output(module: nn.Module, tap: str) -> None:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            record[tap] = _array(output[0] if isinstance(output, tuple) else output)

        handles.append(module.register_forward_hook(hook))

    def replace_input(module: nn.Module, value: torch.Tensor) -> None:
        def hook(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (value, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": value}

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    blocks = blocks_of(model)
    final_norm = _first(base_of(model), "norm", "final_layernorm", "ln_f")
    on_input(blocks[0], taps.EMBED)
    for index, block in enumerate(blocks):
        attention = _first(block, "self_attn", "attn")
        feed_forward = _first(block, "mlp", "ffn")
        on_input(attention, taps.block(index, "attn_norm"))
        on_output(attention, taps.block(index, "attn.out"))
        on_input(feed_forward, taps.block(index, "ff_norm"))
        on_output(feed_forward, taps.block(index, "ff.out"))
        on_output(block, taps.block(index, "out"))
        if inputs is not None:
            replace_input(block, inputs[index])
    on_output(final_norm, taps.FINAL_NORM)
    if inputs is not None:
        replace_input(final_norm, inputs[len(blocks)])
    token = _RECORD.set(record)
    try:
        yield
    finally:
        _RECORD.reset(token)
        for handle in handles:
            handle.remove()
