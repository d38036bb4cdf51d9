"""Faults of the KV cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from litert_torch.generative.layers import kv_cache as kv_utils

from edgeverify.suites.selftest.faults.attention import OUT, TRANSPOSED
from edgeverify.suites.selftest.faults.fault import Faults
from edgeverify.suites.selftest.faults.port_changes import (
    Function,
    in_bfloat16,
    with_function,
    with_output,
)
from edgeverify.suites.selftest.faults.ports import UNIFORM

FAULTS = Faults("cache", where=OUT)
LAYOUT = "litert-torch 4c0ec64"
# Their functions are ``change(update, cache, input_pos, k, v)`` instead of ``update(cache, ...)``.
with_update = partial(with_function, owner=kv_utils, name="update")
_with_transposed_update = partial(with_function, owner=kv_utils, name="update_transposed")


def _entry(cache: Any, k: torch.Tensor, v: torch.Tensor) -> Any:
    return kv_utils.KVCacheEntry(k, v, cache.kv_layout)


_layout_fault = partial(
    FAULTS.add, via=_with_transposed_update, selectors=TRANSPOSED, source=LAYOUT
)


@FAULTS.add("cache row off by one in decode", via=with_update, step="decode.0", kinds="cache.row")
def cache_row_off_by_one_in_decode(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """A decode step writes its row over the one before."""
    return update(cache, pos - (1 if len(pos) == 1 else 0), k, v)


@FAULTS.add("cache row off by one", via=with_update, kinds="cache.row")
def cache_row_one_further(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """Every row is written one place further, and row 0 stays empty."""
    return update(cache, pos + 1, k, v)


@FAULTS.add("cache written from row 0", via=with_update, step="prefill.1", source="LiteRT-LM #3508")
def cache_written_from_row_0(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """Every chunk is written from row 0 on; only the last is kept."""
    return update(cache, pos - pos[0], k, v)


@FAULTS.add(
    "cache emptied in every call",
    via=with_update,
    step="prefill.1",
    kinds="cache.kept",
    source="LiteRT-LM #3508",
)
def cache_forgets_earlier_chunks(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """The cache is empty at the beginning of every call."""
    empty = _entry(cache, torch.zeros_like(cache.k_cache), torch.zeros_like(cache.v_cache))
    return update(empty, pos, k, v)


@FAULTS.add("last row of a chunk lost", via=with_update)
def cache_loses_the_last_row_of_a_chunk(
    update: Function, cache: Any, pos: Any, k: Any, v: Any
) -> Any:
    """The last row of every prefill chunk is not written.

    A chunk of one row is written.
    """
    rows = max(1, len(pos) - 1)
    new = update(cache, pos, k, v)
    k_cache, v_cache = new.k_cache.clone(), new.v_cache.clone()
    for tensor in (k_cache, v_cache):
        tensor[:, pos[0] + rows : pos[0] + len(pos)] = 0
    return _entry(new, k_cache, v_cache)


@FAULTS.add(
    "cache rows added instead of written",
    via=with_update,
    step="decode.0",
    source="litert-torch 84c5015",
)
def cache_rows_added_to_pads(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """Rows are added to what the cache held: the pads of a padded chunk remain."""
    new = update(cache, pos, k, v)
    rows = slice(int(pos[0]), int(pos[0]) + len(pos))
    k_cache, v_cache = new.k_cache.clone(), new.v_cache.clone()
    k_cache[:, rows] += cache.k_cache[:, rows]
    v_cache[:, rows] += cache.v_cache[:, rows]
    return _entry(new, k_cache, v_cache)


@FAULTS.add("cache K and V exchanged", via=with_update)
def cache_k_and_v_exchanged(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """K is attended with as V and the reverse."""
    new = update(cache, pos, k, v)
    return _entry(new, new.v_cache, new.k_cache)


@FAULTS.add("returned cache K and V exchanged", via=with_output, where="kv.*.k", step="prefill.0")
def cache_returned_with_k_and_v_exchanged(output: dict[str, Any], call: dict[str, Any]) -> None:
    """The attention is right, and the cache that is returned has K and V exchanged."""
    entries = output["kv_cache"].caches
    output["kv_cache"] = kv_utils.KVCache(
        tuple(_entry(entry, entry.v_cache, entry.k_cache) for entry in entries)
    )


@FAULTS.add("cache rounded to bfloat16", via=with_update, kinds="cache.half")
def cache_in_bfloat16(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """The cache is kept in bfloat16."""
    new = update(cache, pos, k, v)
    return _entry(new, in_bfloat16(new.k_cache), in_bfloat16(new.v_cache))


@FAULTS.add(
    "cache not updated in decode",
    via=with_output,
    where="kv.*.k",
    step="decode.0",
    kinds="cache.lost",
)
def cache_not_returned_in_decode(output: dict[str, Any], call: dict[str, Any]) -> None:
    """A decode step returns the cache that it was given."""
    if call["tokens"].shape[1] == 1:
        output["kv_cache"] = call["kv_cache"]


@FAULTS.add(
    "cache of another layer", via=with_output, ports=UNIFORM, where="kv.1.k", step="prefill.0"
)
def cache_of_block_0_returned_for_block_1(output: dict[str, Any], call: dict[str, Any]) -> None:
    """Block 1's entry of the returned cache is block 0's."""
    entries = output["kv_cache"].caches
    output["kv_cache"] = kv_utils.KVCache((entries[0], entries[0], *entries[2:]))


@_layout_fault("transposed V written as it is", where="blocks.*.attn.v")
def cache_values_not_transposed(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """Transposed layout: V is written without its axes being exchanged.

    V (1, N, H, T) holds the numbers of (1, N, T, H).
    """
    return update(cache, pos, k, v.transpose(2, 3).reshape(v.shape))


@_layout_fault("transposed K written as it is", where="blocks.*.attn.k")
def cache_keys_lose_their_layout(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """Transposed layout: K holds the rows of the other layout.

    K (1, N, T, H) holds the numbers of (1, T, N, H).
    """
    return update(cache, pos, k.transpose(1, 2).reshape(k.shape), v)
