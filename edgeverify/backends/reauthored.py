"""Runs the re-authored model as the converted file is run: padded chunks, a KV cache as input.

Inner taps are read at places that every model built from the Generative API's blocks passes
through: the linear layers by their names, q where the attention kernels are called, k and v where
the cache is updated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from litert_torch.generative.layers import kv_cache as kv_utils
from litert_torch.generative.layers import scaled_dot_product_attention as sdpa
from litert_torch.generative.utilities.export_config import ExportConfig
from torch import nn

from edgeverify.backends.float64 import Float64Mode, widened
from edgeverify.core import taps
from edgeverify.core.case import Case, Step
from edgeverify.core.errors import PortError
from edgeverify.core.localise import forget_unfed
from edgeverify.core.masks import mask
from edgeverify.core.trace import Trace

KV_LAYOUTS = {
    "default": kv_utils.KV_LAYOUT_DEFAULT,
    "transposed": kv_utils.KV_LAYOUT_TRANSPOSED,
}
PLAIN_ATTENTION = ("scaled_dot_product_attention", "scaled_dot_product_attention_with_hlfb")
TRANSPOSED_ATTENTION = "scaled_dot_product_attention_transposed"


def run(
    model: nn.Module,
    case: Case,
    *,
    dtype: torch.dtype = torch.float32,
    inject: Trace | None = None,
    every_tap: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> Trace:
    """Runs the case, step by step, each step padded to its signature's length.

    Args:
        model: the re-authored model; float32, and unchanged after the run.
        case: what to run, with known decode tokens.
        dtype: ``torch.float64`` makes the model its own oracle.
        inject: an oracle trace; each block (and the final norm) receives the oracle's input,
            rounded to float32, instead of the output of the block before it.
        every_tap: with ``inject``: after a tap is read, the run continues with the oracle's
            value. Each tap then shows only the error of the stretch before it.
        tick: called after each step.

    Returns:
        The trace, cut to the rows of real tokens. ``unavailable`` lists the taps that could not
        be read, with the reason.

    Raises:
        PortError: the model raises while it runs.
    """
    trace = Trace(provenance={"backend": "reauthored", "dtype": str(dtype).removeprefix("torch.")})
    layout = KV_LAYOUTS[case.kv_layout]
    cache = kv_utils.KVCache.from_model_config(
        case.kv_cache_len, model.config, dtype=dtype, kv_layout=layout
    )
    export = ExportConfig(
        output_logits_on_prefill=case.prefill_logits,
        kvcache_layout=layout,
        mask_as_input=case.mask_as_input,
    )
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if dtype == torch.float64:
            stack.enter_context(widened(model))
            stack.enter_context(Float64Mode())
        for step in case.steps:
            recorder = _Recorder(
                inject=_padded_inputs(step, inject, dtype),
                onward=_padded_taps(step, inject) if every_tap and inject is not None else {},
            )
            masks = {}
            if case.mask_as_input:
                masks["mask"] = build_masks(step, case, dtype)
            where = f"{case.model}, step {step.name} ({step.signature})"
            with port_errors(where), _recording(model, recorder):
                output = model(
                    tokens=torch.tensor([step.padded_tokens], dtype=torch.int),
                    input_pos=torch.arange(step.start, step.start + step.length, dtype=torch.int),
                    kv_cache=cache,
                    export_config=export,
                    **masks,
                )
                cache, logits = output["kv_cache"], output.get("logits")
            _store(trace, step, recorder, logits, cache, case)
            if every_tap:
                fed = {
                    name
                    for name in taps.standard_taps(len(cache.caches))
                    if recorder.fed_with(name)
                }
                forget_unfed(trace, step.name, len(cache.caches), fed)
            tick()
    return trace


@contextmanager
def port_errors(where: str) -> Iterator[None]:
    """Turns any exception of a port's own code into a ``PortError`` that says where it ran."""
    try:
        yield
    except Exception as error:
        raise PortError(
            f"the re-authored model raised {type(error).__name__}: {error}",
            where=where,
            expected="a forward of tokens, input_pos, kv_cache, mask and export_config "
            "that returns a dict with kv_cache and logits",
            fix="run `python -m edgeverify_models NAME` on the port first",
        ) from error


def build_masks(
    step: Step, case: Case, dtype: torch.dtype = torch.float32
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Builds the masks that a caller passes: 0 where a query sees a key, -inf elsewhere.

    Returns:
        One (1, 1, T, S) tensor for a single kind, else kind → tensor.

    Raises:
        PortError: the port takes a local mask and its HF config has no window.
    """
    if "local" in case.mask_kinds and case.window is None:
        raise PortError(
            "the port takes a local mask, but its HF config has no sliding_window",
            expected="a sliding_window in the config",
            fix="take 'local' out of the port's mask_kinds",
        )
    # numpy does the widening, because a float32 tensor is an error under ``Float64Mode``.
    width = np.float64 if dtype == torch.float64 else np.float32
    masks = {
        kind: torch.from_numpy(mask(kind, step, case).astype(width)) for kind in case.mask_kinds
    }
    return masks if len(masks) > 1 else masks[case.mask_kinds[0]]


@dataclass
class _Recorder:
    """Records the taps of one step, and the parts that ran or received the oracle's values."""

    inject: list[torch.Tensor] | None = None
    onward: Mapping[str, torch.Tensor] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    block: int | None = None
    ran: set[int] = field(default_factory=set)
    fed: set[int] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)

    def fed_with(self, tap: str) -> bool:
        """Whether the code that reads the tap received the oracle's value of it."""
        names = taps.EMBED, *(taps.block(part - 1, "out") for part in range(1, len(self.fed) + 1))
        return tap in self.replaced or any(names[part] == tap for part in self.fed)

    def feed(self, part: int) -> torch.Tensor | None:
        """Returns the oracle's input of a part: a block, or the final norm after all blocks."""
        if self.inject is None:
            return None
        self.fed.add(part)
        return self.inject[part]

    def was_fed(self, tap: str) -> bool:
        """Whether the computation up to the tap began with the oracle's input, if there is one."""
        if self.inject is None or tap == taps.EMBED:
            return True
        block = taps.block_index(tap)
        return (len(self.inject) - 1 if block is None else block) in self.fed

    def was_passed_over(self, tap: str) -> bool:
        """Whether the tap belongs to a block that did not run, although others did."""
        block = taps.block_index(tap)
        return block is not None and bool(self.ran) and block not in self.ran

    def put(self, tap: str, tensor: torch.Tensor) -> torch.Tensor:
        """Records a tap and returns the value with which the run continues."""
        self.arrays.setdefault(tap, _array(tensor))
        given = self.onward.get(tap)
        if given is None or given.shape != tensor.shape:
            return tensor
        self.replaced.add(tap)
        return given

    def put_block(self, tap: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.block is None else self.put(taps.block(self.block, tap), tensor)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Returns a copy. numpy lacks bfloat16: opaque bytes prevent confusion with another dtype."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view("V2").copy()
    return tensor.numpy().copy()


def _padded_inputs(
    step: Step, oracle: Trace | None, dtype: torch.dtype
) -> list[torch.Tensor] | None:
    """Returns the oracle's input to each block and to the final norm.

    Pad rows repeat the last real row. All values are rounded to float32, because the float32 model
    and its file receive float32.
    """
    if oracle is None:
        return None
    names = [taps.EMBED]
    while f"{step.name}/{taps.block(len(names) - 1, 'out')}" in oracle:
        names.append(taps.block(len(names) - 1, "out"))
    inputs = []
    for name in names:
        rows = oracle[f"{step.name}/{name}"].astype(np.float32)
        pad = np.repeat(rows[:, -1:], step.length - rows.shape[1], axis=1)
        padded = np.concatenate([rows, pad], axis=1)
        if dtype == torch.float64:
            padded = padded.astype(np.float64)
        inputs.append(torch.from_numpy(padded))
    return inputs


def _padded_taps(step: Step, oracle: Trace) -> dict[str, torch.Tensor]:
    """Returns the oracle's value of each inner tap; pad rows are zero.

    Copies of a real row would hide a cache row that is written to the wrong place, because
    attention does not depend on the order of its keys.
    """
    keys = [(key, *taps.split(key)) for key in oracle]
    return {
        tap: _padded(step, oracle[key])
        for key, name, tap in keys
        if name == step.name and not taps.is_outer(tap)
    }


def _padded(step: Step, array: np.ndarray) -> torch.Tensor:
    padded = np.zeros((array.shape[0], step.length, *array.shape[2:]), np.float32)
    padded[:, : array.shape[1]] = array
    return torch.from_numpy(padded)


def _store(
    trace: Trace,
    step: Step,
    recorder: _Recorder,
    logits: torch.Tensor | None,
    cache: Any,
    case: Case,
) -> None:
    arrays = recorder.arrays
    if logits is not None:
        arrays[taps.LOGITS] = _array(logits)
    for index, entry in enumerate(cache.caches):
        k, v = entry.k_cache, entry.v_cache
        if case.kv_layout == "transposed":
            k, v = k.permute(0, 2, 1, 3), v.permute(0, 3, 1, 2)
        for which, tensor in (("k", k), ("v", v)):
            arrays[taps.kv(index, which)] = _array(tensor[:, : step.end])
    wanted = step.is_decode or case.prefill_logits
    for tap in taps.standard_taps(len(cache.caches), logits=wanted):
        if tap in arrays and not recorder.was_fed(tap):
            trace.unavailable[f"{step.name}/{tap}"] = (
                "could not be run alone on the oracle's input: the port calls module.forward(x), "
                "which skips PyTorch's hooks; call module(x)"
            )
        elif tap in arrays:
            rows = arrays[tap] if tap.startswith("kv.") else arrays[tap][:, : len(step.tokens)]
            trace.add(step.name, tap, rows)
        # Logits that a step did not return and blocks that it did not run are missing: a failure.
        elif tap != taps.LOGITS and not recorder.was_passed_over(tap):
            trace.unavailable[f"{step.name}/{tap}"] = (
                "the port's block does not pass through the Generative API's layer that is read "
                "for this tap"
            )


def _blocks_first(block: nn.Module, name: str) -> nn.Module | None:
    """Returns the first submodule called ``name`` (at any depth)."""
    for path, module in block.named_modules():
        if path.rsplit(".", 1)[-1] == name:
            return module
    return None


@contextmanager
def _recording(model: Any, recorder: _Recorder) -> Iterator[None]:
    with ExitStack() as stack:
        blocks = list(model.transformer_blocks)
        for index, block in enumerate(blocks):
            _hook_block(block, index, recorder, stack)
        _hook_head(model, len(blocks), recorder, stack)
        _patch_attention(recorder, stack)
        yield


def _hook_block(block: nn.Module, index: int, recorder: _Recorder, stack: ExitStack) -> None:
    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        recorder.block = index
        x = args[0] if args else kwargs["x"]
        if index == 0:
            recorder.put(taps.EMBED, x)
        given = recorder.feed(index)
        if given is None:
            return None
        return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "x": given})

    def leave(_: nn.Module, args: Any, output: Any) -> None:
        recorder.put_block("out", output[0] if isinstance(output, tuple) else output)
        recorder.block = None

    # Every submodule is hooked: a port may call its block's forward directly, past its own hooks.
    for inner in block.modules():
        run = inner.register_forward_pre_hook(lambda *_: recorder.ran.add(index))
        stack.callback(run.remove)
    stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
    stack.callback(block.register_forward_hook(leave).remove)
    # w3 as well: it has the same input as w1, and must continue with the same value.
    for name, tap in (("qkv_projection", "attn_norm"), ("w1", "ff_norm"), ("w3", "ff_norm")):
        part = _blocks_first(block, name)
        if part is not None:
            hook = lambda _, args, tap=tap: (recorder.put_block(tap, args[0]), *args[1:])  # noqa: E731
            stack.callback(part.register_forward_pre_hook(hook).remove)
    for name, tap in (("output_projection", "attn.out"), ("w2", "ff.out")):
        part = _blocks_first(block, name)
        if part is not None:
            after = lambda _, args, out, tap=tap: recorder.put_block(tap, out)  # noqa: E731
            stack.callback(part.register_forward_hook(after).remove)


def _hook_head(model: nn.Module, num_blocks: int, recorder: _Recorder, stack: ExitStack) -> None:
    def give(_: nn.Module, args: tuple[Any, ...]) -> Any:
        given = recorder.feed(num_blocks)
        return None if given is None else (given, *args[1:])

    norm = getattr(model, "final_norm", None)
    if isinstance(norm, nn.Module):
        stack.callback(norm.register_forward_pre_hook(give).remove)
    head = getattr(model, "lm_head", None)
    if isinstance(head, nn.Module):
        hook = lambda _, args: (recorder.put(taps.FINAL_NORM, args[0]), *args[1:])  # noqa: E731
        stack.callback(head.register_forward_pre_hook(hook).remove)


def _patch_attention(recorder: _Recorder, stack: ExitStack) -> None:
    """Reads q where the attention kernels are called, and k and v where the cache is updated."""
    update, update_transposed = kv_utils.update, kv_utils.update_transposed

    def plain_update(cache: Any, input_pos: Any, k: Any, v: Any, *args: Any, **kw: Any) -> Any:
        k, v = recorder.put_block("attn.k", k), recorder.put_block("attn.v", v)
        return update(cache, input_pos, k, v, *args, **kw)

    def transposed_update(cache: Any, input_pos: Any, k: Any, v: Any) -> Any:
        k = recorder.put_block("attn.k", k.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        v = recorder.put_block("attn.v", v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return update_transposed(cache, input_pos, k, v)

    def patch(owner: Any, name: str, replacement: Callable[..., Any]) -> None:
        stack.enter_context(mock.patch.object(owner, name, replacement))

    patch(kv_utils, "update", plain_update)
    patch(kv_utils, "update_transposed", transposed_update)
    for name in PLAIN_ATTENTION:
        original = getattr(sdpa, name)

        def plain(q: torch.Tensor, *args: Any, _call: Any = original, **kwargs: Any) -> Any:
            return _call(recorder.put_block("attn.q", q), *args, **kwargs)

        patch(sdpa, name, plain)
    transposed_attention = getattr(sdpa, TRANSPOSED_ATTENTION)

    def transposed(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # (1, B·K, G·T, H) was made from (B, T, N, H) by permute(0, 2, 1, 3).reshape(...).
        mask = kwargs.get("mask", args[2] if len(args) > 2 else None)
        rows = query.shape[2] if mask is None else mask.shape[2]
        heads = query.shape[1] * query.shape[2] // rows
        folded = query.reshape(1, heads, rows, query.shape[-1])
        unfolded = recorder.put_block("attn.q", folded.permute(0, 2, 1, 3))
        query = unfolded.permute(0, 2, 1, 3).reshape(query.shape)
        return transposed_attention(query, key, *args, **kwargs)

    patch(sdpa, TRANSPOSED_ATTENTION, transposed)
