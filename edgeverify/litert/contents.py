"""Reads what a .tflite contains: its size, its operators, and which operator makes which tap."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from edgeverify.core import taps
from edgeverify.core.results import FileFacts
from edgeverify.core.store import entries
from edgeverify.litert.flatbuffer.graph import KV_INPUT as KV_OUTPUT
from edgeverify.litert.flatbuffer.graph import ModelFile
from edgeverify.litert.flatbuffer.locate import locate_taps


def file_facts(path: Path, cache: Path | None = None) -> FileFacts:
    """Returns the facts of a decoder's file, from the cache or by parsing it.

    Args:
        path: a .tflite with the signatures that ``edgeverify convert`` writes.
        cache: another cache than the default one.

    Raises:
        ArtifactError: the file cannot be read.
    """
    code = entries.source_digest("litert/contents.py", "litert/flatbuffer/*.py", "core/taps.py")
    key = entries.digest("facts", code, entries.file_digest(path, root=cache))
    write = lambda target: target.write_text(json.dumps(asdict(_read(path))))  # noqa: E731
    entry = entries.cached("facts", key, ".json", write, root=cache)
    return FileFacts(**json.loads(entry.read_text()))


def _read(path: Path) -> FileFacts:
    file = ModelFile(path)
    ops, graphs, nodes = {}, {}, {}
    for name, signature in file.signatures.items():
        graph = file.graph(name)
        ops[name] = dict(sorted(Counter(op.name for op in graph.ops).items()))
        graphs[name] = file.subgraph_name(name)
        located = locate_taps(file, name).taps if "tokens" in signature.inputs else {}
        tensors = {tap: ref.tensor for tap, ref in located.items()}
        for output, tensor in signature.outputs.items():
            cache = KV_OUTPUT.match(output)
            tap = taps.kv(int(cache.group(2)), cache.group(1)) if cache else output
            tensors[tap] = tensor
        nodes[name] = {
            tap: graph.producer[tensor].index
            for tap, tensor in tensors.items()
            if tensor in graph.producer
        }
    return FileFacts(path.stat().st_size, ops, graphs, nodes)
