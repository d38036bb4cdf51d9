"""What a .tflite is made of: its size, its operators, and which of them makes which tap."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from edgeverify import taps
from edgeverify.flatbuffer.graph import KV_INPUT as KV_OUTPUT
from edgeverify.flatbuffer.graph import ModelFile
from edgeverify.flatbuffer.locate import locate_taps
from edgeverify.report.model import FileFacts


def file_facts(path: Path) -> FileFacts:
    """The facts of a decoder's file.

    Args:
        path: a .tflite with the signatures that ``edgeverify convert`` gives it.

    Raises:
        ArtifactError: the file cannot be read.
    """
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
