"""Looks up every row of a re-authored model's embedding: its own forward, to the first block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from litert_torch.generative.layers import kv_cache as kv_utils
from litert_torch.generative.utilities.export_config import ExportConfig
from torch import nn

from edgeverify.backends.reauthored import KV_LAYOUTS, build_masks, port_errors
from edgeverify.core.case import Case, Step

# Values that are looked up at a time: 32 MiB in float32.
PIECE = 1 << 23


class _Reached(Exception):  # noqa: N818 (it is no error: it ends a forward that has gone far enough)
    """The forward has come to the first block."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__("the first block")
        self.hidden = hidden


def looked_up(model: nn.Module, case: Case, width: int, count: int) -> Iterator[np.ndarray]:
    """Yields what the first block receives for each token id from 0 on, piece by piece.

    Args:
        model: the re-authored model.
        case: gives the shortest prefill length, the KV cache and how masks are passed.
        width: of the embedding.
        count: how many ids there are.

    Yields:
        (n, width) float32, in the order of the ids.

    Raises:
        PortError: the forward does not take several conversations at once, or ends elsewhere.
    """
    length = min(case.prefill_lengths)
    layout = KV_LAYOUTS[case.kv_layout]
    inputs: dict[str, Any] = {
        "input_pos": torch.arange(length, dtype=torch.int),
        "kv_cache": kv_utils.KVCache.from_model_config(
            case.kv_cache_len, model.config, kv_layout=layout
        ),
        "export_config": ExportConfig(
            output_logits_on_prefill=case.prefill_logits,
            kvcache_layout=layout,
            mask_as_input=case.mask_as_input,
        ),
    }
    if case.mask_as_input:
        inputs["mask"] = build_masks(Step("embedding", "", length, 0, (0,) * length), case)
    first: Any = model.transformer_blocks[0]  # type: ignore[index]
    hook = first.register_forward_pre_hook(_stop, with_kwargs=True)
    step = max(1, PIECE // width // length) * length
    try:
        for start in range(0, count, step):
            ids = torch.arange(start, min(start + step, count), dtype=torch.int)
            padded = torch.zeros(-(-len(ids) // length) * length, dtype=torch.int)
            padded[: len(ids)] = ids
            hidden = _hidden(model, padded.reshape(-1, length), inputs)
            yield hidden.reshape(len(padded), width)[: len(ids)].numpy()
    finally:
        hook.remove()


def _stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(args[0] if args else kwargs["x"])


def _hidden(model: nn.Module, tokens: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    where = f"{tokens.shape[0]} conversations of {tokens.shape[1]} tokens, up to the first block"
    with port_errors(where), torch.inference_mode():
        try:
            model(tokens=tokens, **inputs)
        except _Reached as reached:
            if reached.hidden.shape[:2] == tokens.shape:
                return reached.hidden
            raise ValueError(f"the first block receives {tuple(reached.hidden.shape)}") from None
        raise ValueError("the forward passes over the hooks of its first block")
