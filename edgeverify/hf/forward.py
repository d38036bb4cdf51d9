"""What a Hugging Face model's forward does outside of its layers, found by running it.

A config may hold keys that its family's code never reads: a Llama config with ``sliding_window``
(every checkpoint that was a Mistral), ``partial_rotary_factor`` or ``final_logit_softcapping``. So
the keys are not believed. The model is built without memory, the layers are replaced by recorders,
and its forward runs: the masks and angles that reach each layer are the ones that it computes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch

from edgeverify.hf.config import meta_model

# Tokens of the recorded run, and a window that they show.
TOKENS, SHOWN_WINDOW = 12, 5
WINDOW_KEY = "sliding_window"
# Far beyond any cap, and far below: tanh(x) is 1 and x there.
_PROBED_LOGITS = torch.tensor([[[1e-6, 1.0, 1e12]]], dtype=torch.float64)


class _UnclearError(Exception):
    """The forward does something that the recorders cannot describe."""


@dataclass(frozen=True)
class Forward:
    """What reaches the layers of a model, and what becomes of its logits.

    Attributes:
        windows: per layer: how many tokens a query sees, itself included; None if all before it.
        rotated: per layer: how many elements of a head the angles are for; None if the layer is
            given no angles.
        embedding_factor: what the looked-up embeddings are multiplied with, outside of the table.
        softcap: the cap of the final logits; None if there is none.
        unclear: attribute → why it could not be found.
    """

    windows: tuple[int | None, ...] = ()
    rotated: tuple[int | None, ...] = ()
    embedding_factor: float = 1.0
    softcap: float | None = None
    unclear: Mapping[str, str] = field(default_factory=dict)

    @property
    def window(self) -> int | None:
        """The smallest window of any layer; None if there is none."""
        return min((window for window in self.windows if window is not None), default=None)


def forward_of(hf_config: Mapping[str, Any]) -> Forward:
    """Finds what a model does outside of its layers; the same config is run once per process.

    Args:
        hf_config: the ``config.json`` dict.

    Raises:
        Exception: any exception that transformers raises for a config that makes no model.
    """
    return _forward(json.dumps(hf_config, sort_keys=True, default=str))


@lru_cache(maxsize=8)
def _forward(told: str) -> Forward:
    hf_config = json.loads(told)
    model = meta_model(hf_config, attn_implementation="eager")
    found, unclear = Forward(), dict[str, str]()
    try:
        found = replace(found, softcap=_softcap(model))
    except Exception as error:
        unclear["softcap"] = _told(error)
    try:
        given = _recorded(model)
        found = replace(
            found,
            rotated=tuple(layer.rotated for layer in given),
            embedding_factor=given[0].factor,
        )
    except Exception as error:
        unclear |= dict.fromkeys(("windows", "rotated", "embedding_factor"), _told(error))
        return replace(found, unclear=unclear)
    try:
        found = replace(found, windows=_windows(hf_config, model.config, given))
    except Exception as error:
        unclear["windows"] = _told(error)
    return replace(found, unclear=unclear)


def _told(error: Exception) -> str:
    if isinstance(error, _UnclearError):
        return str(error)
    return f"transformers' forward cannot be recorded: {type(error).__name__}: {error}"


class _Hidden(SimpleNamespace):
    """The output of a model without its head; it has none of what some families add to it."""

    def __getattr__(self, name: str) -> None:
        return None


@dataclass(frozen=True)
class _Layer:
    """What one layer was given.

    Attributes:
        seen: how many tokens each query sees, (T,); None without a mask.
        rotated: elements of the angles.
        factor: its input, where every looked-up embedding is 1.
    """

    seen: tuple[int, ...] | None
    rotated: int | None
    factor: float


def _recorded(model: Any) -> list[_Layer]:
    """Runs the model around its layers on ``TOKENS`` tokens, and returns what each was given."""
    model = copy.deepcopy(model)
    base = getattr(model, model.base_model_prefix)
    table = model.get_input_embeddings()
    width = table.embedding_dim
    given: list[_Layer] = []

    def record(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        given.append(_given(hidden_states, [*args, *kwargs.values()]))
        return hidden_states

    for layer in base.layers:
        layer.forward = record
    table.forward = lambda ids: torch.ones(*ids.shape, width, dtype=torch.float64)
    for name, part in list(base.named_children()):
        if part is table or part is base.layers:
            continue
        if any(buffer.is_meta for buffer in part.buffers()) and hasattr(part, "config"):
            setattr(base, name, type(part)(part.config))  # a rotary table, now with numbers
        elif any(parameter.is_meta for parameter in part.parameters()):
            part.forward = lambda x, *_, **__: x  # e.g. the final norm
    with torch.no_grad():
        base(input_ids=torch.zeros(1, TOKENS, dtype=torch.long), use_cache=False)
    if len(given) != len(base.layers):
        raise _UnclearError(f"{len(given)} of {len(base.layers)} layers ran")
    return given


def _given(hidden: torch.Tensor, others: list[Any]) -> _Layer:
    flat = hidden.flatten()
    if not bool((flat == flat[0]).all()):
        raise _UnclearError("the embeddings are not only multiplied by a factor")
    masks = [
        given
        for given in others
        if isinstance(given, torch.Tensor) and given.shape[-2:] == (TOKENS, TOKENS)
    ]
    pairs = [given for given in others if _is_angles(given)]
    return _Layer(
        seen=_seen(masks[0]) if masks else None,
        rotated=int(pairs[0][0].shape[-1]) if pairs else None,
        factor=float(flat[0]),
    )


def _is_angles(given: Any) -> bool:
    """Whether this is a pair of cos and sin of every position."""
    return (
        isinstance(given, tuple)
        and len(given) == 2
        and all(isinstance(part, torch.Tensor) and part.shape[-2] == TOKENS for part in given)
    )


def _seen(mask: torch.Tensor) -> tuple[int, ...]:
    """Returns how many tokens each query sees, if they are the last ones before it.

    Args:
        mask: (1, 1, T, T); either True where a token is seen, or what is added to the scores.
    """
    visible = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
    counts = visible.sum(-1)
    positions = torch.arange(TOKENS)
    distance = positions[:, None] - positions[None, :]
    if not torch.equal(visible, (distance >= 0) & (distance < counts[:, None])):
        raise _UnclearError("transformers' mask is more than a window over the tokens before")
    return tuple(counts.tolist())


def _windows(
    hf_config: Mapping[str, Any], config: Any, given: list[_Layer]
) -> tuple[int | None, ...]:
    """Returns each layer's window; one beyond ``TOKENS`` is found by making it short."""
    shown = [_window(layer.seen) for layer in given]
    declared = getattr(config, WINDOW_KEY, None)
    if declared is None or not isinstance(declared, int) or declared < TOKENS:
        return tuple(shown)
    short = meta_model({**hf_config, WINDOW_KEY: SHOWN_WINDOW}, attn_implementation="eager")
    reacts = [_window(layer.seen) == SHOWN_WINDOW for layer in _recorded(short)]
    return tuple(
        declared if moved and window is None else window
        for moved, window in zip(reacts, shown, strict=True)
    )


def _window(seen: tuple[int, ...] | None) -> int | None:
    if seen is None:
        raise _UnclearError("transformers gives a layer no mask")
    if seen == tuple(range(1, TOKENS + 1)):
        return None
    window = max(seen)
    if seen != tuple(min(count, window) for count in range(1, TOKENS + 1)):
        raise _UnclearError("transformers' mask is more than a window over the tokens before")
    return window


def _softcap(model: Any) -> float | None:
    """Returns the cap of the final logits, by what becomes of some; a factor alone is no cap."""
    model = copy.deepcopy(model)
    base, head = getattr(model, model.base_model_prefix), model.get_output_embeddings()
    base.forward = lambda *_, **__: _Hidden(last_hidden_state=torch.zeros(1, 1, 1))
    head.forward = lambda _: _PROBED_LOGITS
    with torch.no_grad():
        logits = model(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits
    factors = logits / _PROBED_LOGITS
    if torch.allclose(factors, factors[..., :1], rtol=1e-12, atol=0.0):
        return None
    cap = float(logits[0, 0, -1])
    if not torch.allclose(logits, cap * torch.tanh(_PROBED_LOGITS / cap), rtol=1e-9, atol=0.0):
        raise _UnclearError("transformers changes the logits by something else than a softcap")
    return cap
