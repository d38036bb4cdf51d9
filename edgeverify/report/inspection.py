"""What a file holds, on a terminal: the model, its signatures, its weights by layer, its ops."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeverify.report.tables import titled
from edgeverify.report.words import listed

_BLOCK = re.compile(r"^transformer_blocks\.(\d+)\.(.+)$")
_CACHE = re.compile(r"^kv_cache_[kv]_(\d+)$")
_OPS_SHOWN = 8
_METADATA_SHOWN = 160  # characters
_KEY_WIDTH = 26  # of the longest metadata field, supports_function_calling


def print_inspection(told: Mapping[str, Any], console: Console, *, verbose: bool = False) -> None:
    """Prints what ``inspection.read.inspect`` returned.

    Args:
        told: its result, or the same read back from JSON.
        console: where to.
        verbose: every tensor of every signature, every weight and every op.
    """
    console.print(Text.assemble((str(told["file"]), "bold"), f"  {size(told['bytes'])}"))
    if told["container"] is not None:
        _print_container(told["container"], console)
    model = told["model"]
    if model is None:
        console.print("  holds no .tflite")
        return
    for label, text in _summary(model):
        console.print(Text.assemble(f"  {label:<14}", text))
    tables = (_signatures(model, verbose), _weights(model, verbose), _ops(model, verbose))
    for table in tables:
        console.print()
        console.print(table, crop=False)


def size(count: int) -> str:
    """Bytes for a person: ``541.3 MB`` (10⁶ bytes), ``2.7 kB``, ``12 B``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _print_container(container: Mapping[str, Any], console: Console) -> None:
    console.print(f"  {'container':<14}.litertlm, version {container['version']}")
    facts = [f"{key} {value}" for key, value in container["facts"].items() if value != ""]
    if facts:
        console.print(Text(f"  {'made':<14}{', '.join(facts)}"))
    console.print(f"  {'tokenizer':<14}{container['tokenizer'] or 'none'}")
    for key, value in container["metadata"].items():
        console.print(Text(f"  {key:<{_KEY_WIDTH}}{_short(_plain(value))}"))
    table = titled("sections", ("section", "from byte", "size", "said of it"), right=(1, 2))
    for section in container["sections"]:
        items = ", ".join(f"{key} {value}" for key, value in section["items"].items())
        table.add_row(section["kind"], str(section["start"]), size(section["bytes"]), items)
    console.print()
    console.print(table, crop=False)
    console.print()


def _plain(value: Any) -> str:
    """Metadata without its nesting: ids as numbers, an empty message as its name."""
    if isinstance(value, Mapping):
        if set(value) == {"token_ids"}:
            return "+".join(map(str, value["token_ids"].get("ids", ())))
        if set(value) == {"token_str"}:
            return repr(value["token_str"])
        return ", ".join(f"{k} {_plain(v)}".rstrip() for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return repr(value) if isinstance(value, str) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= _METADATA_SHOWN else f"{text[:_METADATA_SHOWN]}…"


def _summary(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    llm = model["llm"]
    if "unknown" in llm:
        yield "model", str(llm["unknown"])
    else:
        yield "model", f"{llm['blocks']} blocks, vocabulary of {llm['vocabulary']}"
        how = "" if llm["layout_from"] == "writes" else ", told by shapes alone"
        yield "KV cache", f"{llm['kv_cache_len']} rows, {llm['kv_layout']} layout{how}"
        logits = "with logits" if llm["prefill_logits"] else "without logits"
        yield "prefill", f"{', '.join(map(str, llm['prefill'].values()))} tokens, {logits}"
        batch = llm["decode_batch"]
        yield "decode", "1 token" if batch == 1 else f"1 token of {batch} conversations"
        masks = ", ".join(llm["masks"])
        yield "masks", f"inputs: {masks}" if masks else "built inside"
        for name, reason in llm["others"].items():
            yield "not run", f"{name} {reason}"
    accepts = "takes it" if model["litert_lm"]["accepts"] else "would refuse it"
    yield "LiteRT-LM", f"{accepts}: {model['litert_lm']['reason']}"
    for dtype, total in model["weights_by_dtype"].items():
        yield (
            f"{dtype}",
            f"{total['elements']:,} weights in {total['tensors']} tensors, {size(total['bytes'])}",
        )
    if model["description"]:
        yield "description", model["description"]
    for name, value in model["metadata"].items():
        yield "metadata", f"{name}: {value}"


def _signatures(model: Mapping[str, Any], verbose: bool) -> Table:
    table = titled("signatures", ("signature", "", "tensor", "dtype", "shape"))
    for signature in model["signatures"]:
        first = signature["name"]
        for side in ("inputs", "outputs"):
            label = side[:-1]
            for name, dtype, shape in _tensors(signature[side], verbose):
                table.add_row(Text(first), label, Text(name), dtype, shape)
                first = label = ""
    return table


def _tensors(tensors: Iterable[Mapping[str, Any]], verbose: bool) -> list[tuple[str, str, str]]:
    """Name, dtype and shape; caches that are alike in one line."""
    rows = [(t["name"], t["dtype"], " × ".join(map(str, t["shape"])) or "scalar") for t in tensors]
    if verbose:
        return rows
    alike: dict[tuple[str, str, str], list[int]] = {}
    shown: list[tuple[str, str, str]] = []
    for name, dtype, shape in rows:
        if match := _CACHE.match(name):
            stem = name[: match.start(1)]
            alike.setdefault((stem, dtype, shape), []).append(int(match.group(1)))
        else:
            shown.append((name, dtype, shape))
    caches = [
        (f"{stem}{{{_ranges(n)}}}", dtype, shape) for (stem, dtype, shape), n in alike.items()
    ]
    return [*shown, *caches]


def _weights(model: Mapping[str, Any], verbose: bool) -> Table:
    heads = ("parameter", "blocks", "dtype", "scales", "shape", "size")
    table = titled("weights", heads, right=(5,))
    grouped: dict[tuple[str, ...], list[tuple[int | None, int]]] = {}
    buffers: set[int] = set()
    for weight in model["weights"]:
        match = None if verbose else _BLOCK.match(weight["name"])
        name = match.group(2) if match else weight["name"]
        shape = " × ".join(map(str, weight["shape"]))
        key = (name, weight["dtype"], _scales(weight), shape)
        own = 0 if weight["buffer"] in buffers else weight["size"]
        buffers.add(weight["buffer"])
        grouped.setdefault(key, []).append((int(match.group(1)) if match else None, own))
    for (name, dtype, scales, shape), found in grouped.items():
        blocks = _ranges([block for block, _ in found if block is not None])
        total = sum(bytes_ for _, bytes_ in found)
        told = size(total) if total else "shared"  # with one above: a tied head, norms of ones
        table.add_row(Text(name), blocks, dtype, scales, shape, told)
    return table


def _scales(weight: Mapping[str, Any]) -> str:
    if not weight["granularity"]:
        return ""
    if weight["granularity"] == "block":
        return f"per block of {weight['block_size']}"
    return f"per {weight['granularity']}"


def _ranges(numbers: Iterable[int]) -> str:
    """``0–3, 7`` of 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def _ops(model: Mapping[str, Any], verbose: bool) -> Table:
    table = titled("ops", ("signature", "ops", "kinds"), right=(1,))
    for name, ops in model["ops"].items():
        counted = Counter(ops).most_common()
        most = len(counted) if verbose else _OPS_SHOWN
        kinds = listed([f"{count} {op}" for op, count in counted], most, " kinds")
        table.add_row(Text(name), str(sum(ops.values())), ", ".join(kinds))
    return table
