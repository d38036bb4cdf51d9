"""The re-authored model as a session, called as the converted file is called."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import torch
from litert_torch.generative.layers import kv_cache as kv_utils
from litert_torch.generative.layers import scaled_dot_product_attention as sdpa
from litert_torch.generative.utilities.export_config import ExportConfig
from torch import nn

from edgeverify.backends.reauthored import (
    KV_LAYOUTS,
    PLAIN_ATTENTION,
    TRANSPOSED_ATTENTION,
    build_masks,
    port_errors,
)
from edgeverify.backends.sessions.session import Cache, Session
from edgeverify.core import taps
from edgeverify.core.case import Case, Step

# Axis orders that turn a cache into (S, N, H), without the batch. A default cache is (B, S, N, H);
# a transposed cache has K (B, N, S, H) and V (B, N, H, S).
TO_ROWS = {
    "default": {"k": (0, 1, 2), "v": (0, 1, 2)},
    "transposed": {"k": (1, 0, 2), "v": (2, 0, 1)},
}


class ReauthoredSession(Session):
    """A session of a re-authored model. A batch needs the default KV layout (not the transposed).

    Args:
        model: float32, in eval mode.
        case: gives the rows, the prefill lengths, the KV layout and how masks are passed.
        batch: conversations of a batched decode step.
    """

    def __init__(
        self,
        model: nn.Module,
        case: Case,
        *,
        batch: int = 3,
    ) -> None:
        super().__init__("reauthored", case.kv_cache_len, case.prefill_lengths)
        self.batch = 0 if case.kv_layout == "transposed" else batch
        self._model, self._case = model, case
        self._export = ExportConfig(
            output_logits_on_prefill=case.prefill_logits,
            kvcache_layout=KV_LAYOUTS[case.kv_layout],
            mask_as_input=case.mask_as_input,
        )
        self._clear()

    def read_cache(self) -> dict[str, np.ndarray]:
        """Returns a copy of the cache."""
        return self._rows(self._cache, 0)

    def write_cache(self, cache: Cache) -> None:
        """Replaces the cache."""
        self._cache = self._cache_of([cache])

    def masks_of_step(self, signature: str, tokens: Sequence[int]) -> list[np.ndarray]:
        """Returns the masks as the Generative API's attention functions receive them."""
        seen: list[np.ndarray] = []
        real = len(tokens)
        length = 1 if signature == "decode" else int(signature.removeprefix("prefill_"))
        with ExitStack() as stack:
            for name in (*PLAIN_ATTENTION, TRANSPOSED_ATTENTION):
                stack.enter_context(mock.patch.object(sdpa, name, _watched(name, seen, real)))
            self._forward([[*tokens, *[0] * (length - real)]], self._cache)
        return seen

    def decode_batch(
        self, tokens: Sequence[int], caches: Sequence[Cache]
    ) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
        """One decode step of several conversations."""
        if not self.batch:
            return super().decode_batch(tokens, caches)
        logits, cache = self._forward([[token] for token in tokens], self._cache_of(caches))
        return logits[:, 0].numpy(), [self._rows(cache, row) for row in range(len(tokens))]

    def _step(self, signature: str, tokens: list[int], real: int) -> np.ndarray | None:
        logits, self._cache = self._forward([tokens], self._cache)
        return None if logits is None else logits[0].numpy()

    def _forward(self, tokens: list[list[int]], cache: Any) -> tuple[Any, Any]:
        start, length = self.position, len(tokens[0])
        inputs: dict[str, Any] = {}
        if self._case.mask_as_input:
            step = Step("step", "", length, start, tuple(tokens[0]))
            inputs["mask"] = build_masks(step, self._case)
        where = f"{self._case.model}, {length} tokens at position {start}"
        with torch.inference_mode(), port_errors(where):
            output = self._model(
                tokens=torch.tensor(tokens, dtype=torch.int),
                input_pos=torch.arange(start, start + length, dtype=torch.int),
                kv_cache=cache,
                export_config=self._export,
                **inputs,
            )
            return output.get("logits"), output["kv_cache"]

    def _clear(self) -> None:
        self._cache = self._empty(1)

    def _empty(self, batch: int) -> Any:
        return kv_utils.KVCache.from_model_config(
            self.rows,
            self._model.config,  # type: ignore[arg-type]
            batch_size=batch,
            kv_layout=KV_LAYOUTS[self._case.kv_layout],
        )

    def _rows(self, cache: Any, row: int) -> dict[str, np.ndarray]:
        order = TO_ROWS[self._case.kv_layout]
        return {
            taps.kv(index, which): np.array(tensor[row].numpy().transpose(order[which]), order="C")
            for index, entry in enumerate(cache.caches)
            for which, tensor in (("k", entry.k_cache), ("v", entry.v_cache))
        }

    def _cache_of(self, caches: Sequence[Cache]) -> Any:
        order = TO_ROWS[self._case.kv_layout]
        layout = KV_LAYOUTS[self._case.kv_layout]
        entries = []
        for index in range(len(caches[0]) // 2):
            pair = [
                np.stack(
                    [c[taps.kv(index, which)].transpose(np.argsort(order[which])) for c in caches]
                )
                for which in "kv"
            ]
            entries.append(kv_utils.KVCacheEntry(*map(torch.from_numpy, pair), kv_layout=layout))
        return kv_utils.KVCache(tuple(entries))


def _watched(name: str, seen: list[np.ndarray], real: int) -> Any:
    """The attention function ``name``, whose mask is noted down."""
    original = getattr(sdpa, name)

    def attend(query: Any, key: Any, value: Any, head_size: Any, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("mask", args[0] if args else None)
        if mask is not None:
            seen.append(mask[0, 0, :real].numpy().copy())
        return original(query, key, value, head_size, *args, **kwargs)

    return attend
