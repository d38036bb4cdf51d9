"""The ways a port is changed: its config, its weights as they are loaded, its code.

A changed port is a port like any other. Nothing here touches the reference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from litert_torch.generative.layers import model_config as cfg
from torch import nn

from edgeverify_models.port import HFConfig, Port

State = dict[str, torch.Tensor]
Blocks = Collection[int] | None  # None: all of them
Function = Callable[..., Any]


def with_config(port: Port, **changes: Any) -> Port:
    """Its model is built from an HF config with ``changes``; the reference is not."""
    return replace(port, model_config=lambda hf: port.model_config({**hf, **changes}))


def with_scaled(port: Port, factor: float, *keys: str) -> Port:
    """Its model is built from an HF config in which each number among ``keys`` is scaled."""

    def config(hf: HFConfig) -> cfg.ModelConfig:
        return port.model_config({**hf, **{key: hf[key] * factor for key in keys if key in hf}})

    return replace(port, model_config=config)


def with_hf(port: Port, **changes: Any) -> Port:
    """Its tiny HF config has ``changes``, on both sides."""
    tiny = {**port.hf_configs["tiny"], **changes}
    return replace(port, hf_configs={**port.hf_configs, "tiny": tiny})


def with_model_config(port: Port, change: Callable[[cfg.ModelConfig], None]) -> Port:
    """Its ``ModelConfig`` is changed once it is made; every block has a config of its own."""

    def config(hf: HFConfig) -> cfg.ModelConfig:
        made = port.model_config(hf)
        blocks = [copy.deepcopy(made.block_config(i)) for i in range(made.num_layers)]
        made.block_configs = blocks
        change(made)
        return made

    return replace(port, model_config=config)


def with_block_configs(
    port: Port, change: Callable[[cfg.TransformerBlockConfig], None], blocks: Blocks = None
) -> Port:
    """The configs of ``blocks`` are changed."""

    def change_all(config: cfg.ModelConfig) -> None:
        for index in range(config.num_layers):
            if blocks is None or index in blocks:
                change(config.block_config(index))

    return with_model_config(port, change_all)


def with_model(port: Port, change: Callable[[Any], None]) -> Port:
    """Its model is changed once it is built, before its weights are loaded."""

    class Changed(port.model_class):  # type: ignore[misc, name-defined]
        def __init__(self, config: cfg.ModelConfig, mask_cache_size: int = 0) -> None:
            super().__init__(config, mask_cache_size)
            change(self)

    return replace(port, model_class=Changed)


def with_blocks(port: Port, change: Callable[[Any], None], blocks: Blocks = None) -> Port:
    """The model's ``blocks`` are changed once they are built."""

    def change_all(model: Any) -> None:
        for index, block in enumerate(model.transformer_blocks):
            if blocks is None or index in blocks:
                change(block)

    return with_model(port, change_all)


def with_state(port: Port, change: Callable[[State], None]) -> Port:
    """The re-authored tensors are changed as they are loaded; the checkpoint's stay."""

    class Changed(port.model_class):  # type: ignore[misc, name-defined]
        def load_state_dict(self, state: State, *args: Any, **kwargs: Any) -> Any:
            changed = dict(state)
            change(changed)
            return super().load_state_dict(changed, *args, **kwargs)

    return replace(port, model_class=Changed)


def with_tensor(port: Port, change: Callable[[torch.Tensor], torch.Tensor], suffix: str) -> Port:
    """Every re-authored tensor whose name ends in ``suffix`` is changed as it is loaded."""

    def change_all(state: State) -> None:
        named = [name for name in state if name.endswith(suffix)]
        assert named, f"no tensor of {port.name} ends in {suffix}"
        for name in named:
            state[name] = change(state[name].clone())

    return with_state(port, change_all)


def tensor(suffix: str) -> Function:
    """``with_tensor`` of one suffix, for ``Faults.add(via=...)``."""
    return partial(with_tensor, suffix=suffix)


def with_names(port: Port, **names: str | None) -> Port:
    """Its first naming scheme has other names, and no other scheme is left."""
    return replace(port, tensor_names=replace(port.naming_schemes[0], **names))


def with_call(port: Port, change: Callable[[dict[str, Any]], None]) -> Port:
    """The keyword arguments of its model's forward are changed at every step."""

    def rewrap(model: Any) -> None:
        forward = model.forward

        def changed(**kwargs: Any) -> Any:
            change(kwargs)
            return forward(**kwargs)

        model.forward = changed

    return with_model(port, rewrap)


def with_output(port: Port, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Port:
    """What its model's forward returns is changed, knowing what it was called with."""

    def rewrap(model: Any) -> None:
        forward = model.forward

        def changed(**kwargs: Any) -> Any:
            output = dict(forward(**kwargs))
            change(output, kwargs)
            return output

        model.forward = changed

    return with_model(port, rewrap)


def with_logits(port: Port, change: Callable[[torch.Tensor], torch.Tensor]) -> Port:
    """The logits that its model's forward returns, (B, T, V), are changed."""

    def change_logits(output: dict[str, Any], call: dict[str, Any]) -> None:
        if "logits" in output:
            output["logits"] = change(output["logits"])

    return with_output(port, change_logits)


def with_attention(port: Port, change: Callable[[list[Any]], None]) -> Port:
    """What enters the attention is changed: ``[x, (cos, sin), mask, input_pos, cache, ...]``."""

    def rewrap(block: Any) -> None:
        attend = block.atten_func.forward

        def forward(*args: Any) -> Any:
            changed = list(args)
            change(changed)
            return attend(*changed)

        block.atten_func.forward = forward

    return with_blocks(port, rewrap)


def patch_attention(block: Any, change: Function, owner: Any, name: str) -> None:
    """While the attention of ``block`` runs, ``change(f, ...)`` replaces ``f = owner.name``."""
    attend = block.atten_func.forward

    def forward(*args: Any) -> Any:
        changed = partial(change, getattr(owner, name))
        with mock.patch.object(owner, name, changed):
            return attend(*args)

    block.atten_func.forward = forward


def with_function(
    port: Port, change: Function, owner: Any, name: str, blocks: Blocks = None
) -> Port:
    """``patch_attention`` in ``blocks``."""
    return with_blocks(port, lambda block: patch_attention(block, change, owner, name), blocks)


def with_rope(port: Port, change: Function) -> Port:
    """Its cos and sin come from ``change(build, input_pos, elements, base)``."""

    def change_config(config: cfg.ModelConfig) -> None:
        build = config.build_rope
        # A partial function would have an address in the digest of the config.
        config.build_rope = lambda *args: change(build, *args)

    return with_model_config(port, change_config)


def with_mask(port: Port, change: Callable[[torch.Tensor], torch.Tensor]) -> Port:
    """Its mask caches, (1, 1, S, S) each, are changed."""

    def change_all(model: Any) -> None:
        if isinstance(model.mask_cache, dict):
            model.mask_cache = {kind: change(mask) for kind, mask in model.mask_cache.items()}
        elif model.mask_cache is not None:
            model.mask_cache = change(model.mask_cache)

    return with_model(port, change_all)


def attention_config(port: Port, index: int) -> cfg.AttentionConfig:
    """The attention's config of one block, tiny size."""
    return port.model_config(port.hf_configs["tiny"]).block_config(index).attn_config


def split_qkv(port: Port, index: int, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Q, K and V of a fused matrix, (rows, C), or bias, (rows,), as they lie in blocks."""
    attention = attention_config(port, index)
    dim, groups = attention.head_dim, attention.num_query_groups
    return weight.split((attention.num_heads * dim, groups * dim, groups * dim))


def with_qkv(port: Port, change: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]) -> Port:
    """Every fused qkv tensor becomes the concatenation of ``change(q, k, v)``."""

    def change_all(state: State) -> None:
        for name in [n for n in state if ".qkv_projection." in n]:
            parts = split_qkv(port, int(name.split(".")[1]), state[name])
            state[name] = torch.cat(tuple(change(*parts)))

    return with_state(port, change_all)


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """All linear layers below a module."""
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def in_bfloat16(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, rounded to bfloat16."""
    return tensor.bfloat16().to(tensor.dtype)
