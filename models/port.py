"""A Port: what is needed to re-author one model family, and the loading of its weights.

This package depends only on LiteRT-Torch. It does not import the verifier or transformers, so an
application can use a port from here unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from litert_torch.generative.layers.model_config import ModelConfig
from litert_torch.generative.utilities.loader import ModelLoader
from torch import nn
from torch.overrides import TorchFunctionMode

TensorNames: TypeAlias = ModelLoader.TensorNames
HFConfig: TypeAlias = Mapping[str, Any]


class LoadError(ValueError):
    """Raised for a state dict that does not map one to one onto the re-authored model."""


@dataclass(frozen=True)
class Port:
    """One re-authored model family.

    ``dataclasses.replace`` on a port gives a working variant.

    Attributes:
        name: the registered name, e.g. ``"tinyllama"``.
        hf_configs: size → Hugging Face ``config.json`` as a dict, always with ``"tiny"``.
        default_size: the size that is checked if no size is requested.
        hub_ids: size → hub id of the published checkpoint.
        model_config: HF config → the Generative API's ``ModelConfig``.
        model_class: built as ``model_class(config, mask_cache_size=N)``; its forward takes
            ``tokens, input_pos, kv_cache, mask=None, export_config=None`` and its blocks are in
            ``transformer_blocks``.
        tensor_names: one or several naming schemes of checkpoints, tried in order.
        mask_kinds: for ``mask_as_input``: the names of the masks that the forward takes, in order.
            One name means a single tensor, several mean a dict keyed by them. The names are
            ``"global"`` and ``"local"``.
    """

    name: str
    hf_configs: Mapping[str, HFConfig]
    default_size: str
    hub_ids: Mapping[str, str]
    model_config: Callable[[HFConfig], ModelConfig]
    model_class: Callable[..., nn.Module]
    tensor_names: TensorNames | Sequence[TensorNames]
    mask_kinds: tuple[str, ...] = ("global",)

    @property
    def naming_schemes(self) -> tuple[TensorNames, ...]:
        """Returns all schemes of ``tensor_names``, as a tuple."""
        if isinstance(self.tensor_names, ModelLoader.TensorNames):
            return (self.tensor_names,)
        return tuple(self.tensor_names)


class _StateCollector:
    """Stands in for the model while LiteRT-Torch's loader renames and fuses tensors."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.state: dict[str, torch.Tensor] = {}

    def load_state_dict(self, state: dict[str, torch.Tensor], strict: bool = True) -> None:
        del strict  # map_state checks strictness, because it knows both sides
        self.state = state


def map_state(
    port: Port, config: ModelConfig, state: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[str, ...]]]:
    """Renames and fuses a checkpoint's tensors into the re-authored model's names.

    Args:
        port: the port whose naming schemes are tried, in order.
        config: the re-authored config (number of layers, heads and groups, biases, tied head).
        state: the checkpoint, HF names → tensors; not modified. If the config ties the LM head to
            the embedding table, the checkpoint may contain the head or not.

    Returns:
        The mapped state; and for each scheme that was tried before the one that fits, by its
        position, the reasons why it does not fit.

    Raises:
        LoadError: no scheme takes every tensor of the checkpoint exactly once, or a tied head
            has other values than the embedding table. The message names the tensors that are
            missing or left over under each scheme.
    """
    tied = bool(config.lm_head_share_weight_with_embedding)
    reasons: dict[str, tuple[str, ...]] = {}
    for position, names in enumerate(port.naming_schemes):
        remaining = dict(state)
        head = names.lm_head or "lm_head"
        if tied:
            _take_tied_head(f"{names.embedding}.weight", f"{head}.weight", remaining)
            names = replace(names, lm_head=None)
        collector = _StateCollector(config)
        loader = ModelLoader("", names, custom_loader=lambda _, s=remaining: s)
        try:
            loader.load(collector, strict=False)
            if tied and config.lm_head_use_bias:
                collector.state["lm_head.bias"] = remaining.pop(f"{head}.bias")
        except KeyError as error:
            reasons[str(position)] = (f"tensor {error.args[0]!r} is not in the checkpoint",)
            continue
        if remaining:
            reasons[str(position)] = (f"nothing takes {_some(remaining)}",)
            continue
        if tied:
            collector.state["lm_head.weight"] = collector.state["tok_embedding.weight"]
        return collector.state, reasons
    told = " | ".join(f"scheme {at}: {'; '.join(why)}" for at, why in reasons.items())
    raise LoadError(f"the checkpoint does not fit port {port.name!r}: {told}")


def build_model(
    port: Port,
    hf_config: HFConfig,
    state: Mapping[str, torch.Tensor],
    *,
    mask_cache_size: int,
) -> nn.Module:
    """Builds the re-authored model and loads a checkpoint into it, strictly.

    Every tensor of the checkpoint is used exactly once, and every parameter of the model is set
    from the checkpoint. If the model ties the LM head to the embedding table, a checkpoint that
    still contains an LM head must have exactly the table's values in it.

    Args:
        port: the family.
        hf_config: the Hugging Face config that the model is built from.
        state: the checkpoint, HF names → float32 tensors. Unfused tensors are shared with
            the model, not copied.
        mask_cache_size: length of the mask that is built inside; 0 if masks are inputs.

    Returns:
        The model in eval mode.

    Raises:
        LoadError: a tensor is missing, left over, of another shape, or an untied head would be
            dropped.
    """
    config = port.model_config(hf_config)
    with torch.device("meta"):
        skeleton = port.model_class(config, mask_cache_size=0)
    mapped, _ = map_state(port, config, state)
    _require_same_tensors(port, skeleton.state_dict(), mapped)

    model = construct_empty(port, config, mask_cache_size)
    model.load_state_dict(mapped, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


class _NoInit(TorchFunctionMode):
    """Leaves parameters uninitialised: they are replaced, and drawing billions takes minutes.

    ``torch.nn.init`` dispatches its functions like torch's own, so this mode can skip them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def construct_empty(port: Port, config: ModelConfig, mask_cache_size: int) -> nn.Module:
    """Builds the module with its parameters on meta and everything else, such as masks, on the CPU.

    Parameters are moved to the meta device as they are created. Only the weights that
    ``load_state_dict(..., assign=True)`` assigns later are therefore ever in memory.
    """
    original = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        original(module, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign,assignment]
    try:
        with _NoInit():
            return port.model_class(config, mask_cache_size=mask_cache_size)
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def _take_tied_head(embedding: str, head: str, remaining: dict[str, torch.Tensor]) -> None:
    """Removes a tied LM head from ``remaining`` after checking that it is the embedding table."""
    if head not in remaining or embedding not in remaining:
        return
    mine, table = remaining[head], remaining[embedding]
    same = mine is table or (mine.data_ptr() == table.data_ptr() and mine.shape == table.shape)
    if not same and not torch.equal(mine, table):
        raise LoadError(
            f"{head!r} differs from {embedding!r}, but the config ties them "
            "(tie_word_embeddings): the checkpoint's own head would be dropped"
        )
    remaining.pop(head)


def _require_same_tensors(
    port: Port,
    wanted: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
) -> None:
    missing = sorted(set(wanted) - set(given))
    if missing:
        raise LoadError(
            f"port {port.name!r} sets no value for {_some(missing)} from the checkpoint"
        )
    extra = sorted(set(given) - set(wanted))
    if extra:
        raise LoadError(
            f"the checkpoint carries {_some(extra)}, which the re-authored {port.name!r} lacks"
        )
    for name, tensor in given.items():
        if tuple(tensor.shape) != tuple(wanted[name].shape):
            raise LoadError(
                f"{name!r} is {tuple(tensor.shape)} in the checkpoint and "
                f"{tuple(wanted[name].shape)} in the re-authored {port.name!r}"
            )


def _some(names: Sequence[str] | Mapping[str, Any], limit: int = 6) -> str:
    listed = [repr(name) for name in list(names)[:limit]]
    more = len(list(names)) - limit
    return ", ".join(listed) + (f" and {more} more" if more > 0 else "")
