"""Faults of the KV cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from litert_torch.generative.layers import kv_cache as kv_utils

from edgeverify.suites.selftest.faults.attention import OUT, TRANSPOSED
from edgeverify.suites.selftest.faults.changes import (
    Function,
    in_bfloat16,
    with_function,
    with_output,
)
from edgeverify.suites.selftest.faults.fault import Fault
from edgeverify.suites.selftest.faults.ports import ALL, UNIFORM
from edgeverify_models.port import Port


def _updating(
    change: Callable[[Function, Any, Any, Any, Any], Any], name: str = "update"
) -> Callable[[Port], Port]:
    """``change(update, cache, input_pos, k, v)`` stands for ``update(cache, input_pos, k, v)``."""

    def make(update: Function) -> Function:
        return lambda cache, pos, k, v: change(update, cache, pos, k, v)

    return lambda port: with_function(port, kv_utils, name, make)


def _entry(cache: Any, k: torch.Tensor, v: torch.Tensor) -> Any:
    return kv_utils.KVCacheEntry(k, v, cache.kv_layout)


def _row_before_in_decode(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    return update(cache, pos - (1 if len(pos) == 1 else 0), k, v)


def _from_row_0(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    return update(cache, pos - pos[0], k, v)


def _one_row_further(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    return update(cache, pos + 1, k, v)


def _exchanged(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    new = update(cache, pos, k, v)
    return _entry(new, new.v_cache, new.k_cache)


def _rounded(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    new = update(cache, pos, k, v)
    return _entry(new, in_bfloat16(new.k_cache), in_bfloat16(new.v_cache))


def _earlier_rows_lost(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    empty = _entry(cache, torch.zeros_like(cache.k_cache), torch.zeros_like(cache.v_cache))
    return update(empty, pos, k, v)


def _last_row_lost(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """The chunk's last row is not written, where it has more than one."""
    rows = max(1, len(pos) - 1)
    new = update(cache, pos, k, v)
    k_cache, v_cache = new.k_cache.clone(), new.v_cache.clone()
    for tensor in (k_cache, v_cache):
        tensor[:, pos[0] + rows : pos[0] + len(pos)] = 0
    return _entry(new, k_cache, v_cache)


def _added_to_what_was_there(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """Rows are added, not written: rows of an earlier chunk's pads remain in the sum."""
    new = update(cache, pos, k, v)
    rows = slice(int(pos[0]), int(pos[0]) + len(pos))
    k_cache, v_cache = new.k_cache.clone(), new.v_cache.clone()
    k_cache[:, rows] += cache.k_cache[:, rows]
    v_cache[:, rows] += cache.v_cache[:, rows]
    return _entry(new, k_cache, v_cache)


def _values_not_transposed(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """V (1, N, H, T) holds the numbers of (1, N, T, H), without the axes being exchanged."""
    return update(cache, pos, k, v.transpose(2, 3).reshape(v.shape))


def _keys_lose_their_layout(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """K (1, N, T, H) holds the numbers of (1, T, N, H)."""
    return update(cache, pos, k.transpose(1, 2).reshape(k.shape), v)


def _stale_in_decode(output: dict[str, Any], call: dict[str, Any]) -> None:
    if call["tokens"].shape[1] == 1:
        output["kv_cache"] = call["kv_cache"]


def _first_two_shared(output: dict[str, Any], call: dict[str, Any]) -> None:
    entries = output["kv_cache"].caches
    output["kv_cache"] = kv_utils.KVCache((entries[0], entries[0], *entries[2:]))


def _returned_exchanged(output: dict[str, Any], call: dict[str, Any]) -> None:
    entries = output["kv_cache"].caches
    output["kv_cache"] = kv_utils.KVCache(
        tuple(_entry(entry, entry.v_cache, entry.k_cache) for entry in entries)
    )


FAULTS = (
    Fault(
        name="cache_row_off_by_one_in_decode",
        area="cache",
        description="A decode step writes its row over the one before.",
        cause="cache row off by one in decode",
        ports=ALL,
        where=OUT,
        step="decode.0",
        port=_updating(_row_before_in_decode),
    ),
    Fault(
        name="cache_row_one_further",
        area="cache",
        description="Every row is written one place further, and row 0 stays empty.",
        cause="cache row off by one",
        ports=ALL,
        where=OUT,
        port=_updating(_one_row_further),
    ),
    Fault(
        name="cache_written_from_row_0",
        area="cache",
        description="Every chunk is written from row 0 on; only the last is kept.",
        cause="cache written from row 0",
        ports=ALL,
        where=OUT,
        step="prefill.1",
        port=_updating(_from_row_0),
        source="LiteRT-LM #3508",
    ),
    Fault(
        name="cache_forgets_earlier_chunks",
        area="cache",
        description="The cache is empty at the beginning of every call.",
        cause="cache emptied in every call",
        ports=ALL,
        where=OUT,
        step="prefill.1",
        port=_updating(_earlier_rows_lost),
        source="LiteRT-LM #3508",
    ),
    Fault(
        name="cache_loses_the_last_row_of_a_chunk",
        area="cache",
        description="The last row of every prefill chunk is not written.",
        cause="last row of a chunk lost",
        ports=ALL,
        where=OUT,
        port=_updating(_last_row_lost),
    ),
    Fault(
        name="cache_rows_added_to_pads",
        area="cache",
        description="Rows are added to what the cache held: the pads of a padded chunk remain.",
        cause="cache rows added instead of written",
        ports=ALL,
        where=OUT,
        step="decode.0",
        port=_updating(_added_to_what_was_there),
        source="litert-torch 84c5015",
    ),
    Fault(
        name="cache_k_and_v_exchanged",
        area="cache",
        description="K is attended with as V and the reverse.",
        cause="cache K and V exchanged",
        ports=ALL,
        where=OUT,
        port=_updating(_exchanged),
    ),
    Fault(
        name="cache_returned_with_k_and_v_exchanged",
        area="cache",
        description="The attention is right, and the cache that is returned has K and V exchanged.",
        cause="returned cache K and V exchanged",
        ports=ALL,
        where=("kv.*.k",),
        step="prefill.0",
        port=lambda port: with_output(port, _returned_exchanged),
    ),
    Fault(
        name="cache_in_bfloat16",
        area="cache",
        description="The cache is kept in bfloat16.",
        cause="cache rounded to bfloat16",
        ports=ALL,
        where=OUT,
        port=_updating(_rounded),
    ),
    Fault(
        name="cache_not_returned_in_decode",
        area="cache",
        description="A decode step returns the cache that it was given.",
        cause="cache not updated in decode",
        ports=ALL,
        where=("kv.*.k",),
        step="decode.0",
        port=lambda port: with_output(port, _stale_in_decode),
    ),
    Fault(
        name="cache_of_block_0_returned_for_block_1",
        area="cache",
        description="Block 1's entry of the returned cache is block 0's.",
        cause="cache of another layer",
        ports=UNIFORM,
        where=("kv.1.k",),
        step="prefill.0",
        port=lambda port: with_output(port, _first_two_shared),
    ),
    Fault(
        name="cache_values_not_transposed",
        area="cache",
        description="Transposed layout: V is written without its axes being exchanged.",
        cause="transposed V written as it is",
        ports=ALL,
        where=("blocks.*.attn.v",),
        port=_updating(_values_not_transposed, "update_transposed"),
        selectors=TRANSPOSED,
        source="litert-torch 4c0ec64",
    ),
    Fault(
        name="cache_keys_lose_their_layout",
        area="cache",
        description="Transposed layout: K holds the rows of the other layout.",
        cause="transposed K written as it is",
        ports=ALL,
        where=("blocks.*.attn.k",),
        port=_updating(_keys_lose_their_layout, "update_transposed"),
        selectors=TRANSPOSED,
        source="litert-torch 4c0ec64",
    ),
)
