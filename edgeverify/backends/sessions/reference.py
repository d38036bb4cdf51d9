"""The Hugging Face model as a session: its own cache, chunks of any length, no pads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from edgeverify.backends.sessions.session import Cache, Session
from edgeverify.core import taps


class ReferenceSession(Session):
    """A session of the Hugging Face reference. Its cache has only the valid rows.

    Args:
        model: from ``backends.reference.build``.
        rows, lengths: those of the file that it is compared with, so the same scripts fit both.
        batch: conversations of a batched step; the model itself takes any number.
    """

    fixed = False

    def __init__(
        self, model: PreTrainedModel, rows: int, lengths: Sequence[int], batch: int = 3
    ) -> None:
        super().__init__("reference", rows, lengths)
        self.batch = batch
        self._model = model
        self._clear()

    def rewind(self, position: int) -> None:
        """Goes back to ``position``; the rows after it are dropped."""
        dropped = self.position - position
        super().rewind(position)
        if position == 0:
            self._clear()
        elif dropped:
            self._cache.crop(-dropped)

    def read_cache(self) -> dict[str, np.ndarray]:
        """Returns the valid rows."""
        return _rows(self._cache, 0)

    def write_cache(self, cache: Cache) -> None:
        """Replaces the valid rows."""
        self._cache = _cache_of([cache])

    def decode_batch(
        self, tokens: Sequence[int], caches: Sequence[Cache]
    ) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
        """One decode step of several conversations."""
        cache = _cache_of(caches)
        logits = self._forward([[token] for token in tokens], cache)
        return logits[:, 0], [_rows(cache, row) for row in range(len(tokens))]

    def _step(self, signature: str, tokens: list[int], real: int) -> np.ndarray:
        return self._forward([tokens[:real]], self._cache)[0]

    def _forward(self, tokens: list[list[int]], cache: DynamicCache) -> np.ndarray:
        positions = torch.arange(self.position, self.position + len(tokens[0]))
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor(tokens),
                position_ids=positions[None].expand(len(tokens), -1),
                past_key_values=cache,
                use_cache=True,
            )
        return output.logits.numpy()

    def _clear(self) -> None:
        # A cache built without the config also keeps every row of sliding layers; only the mask
        # decides what they see.
        self._cache = DynamicCache()


def _rows(cache: DynamicCache, row: int) -> dict[str, np.ndarray]:
    found = {}
    for index, layer in enumerate(cache.layers):
        if layer.keys is not None:
            found[taps.kv(index, "k")] = layer.keys[row].transpose(0, 1).numpy().copy()
            found[taps.kv(index, "v")] = layer.values[row].transpose(0, 1).numpy().copy()
    return found


def _cache_of(caches: Sequence[Cache]) -> DynamicCache:
    made = DynamicCache()
    for index in range(len(caches[0]) // 2):
        pair = (
            np.stack([np.asarray(cache[taps.kv(index, which)]).swapaxes(0, 1) for cache in caches])
            for which in "kv"
        )
        made.update(*(torch.from_numpy(array) for array in pair), layer_idx=index)
    return made
