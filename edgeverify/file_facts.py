"""What a .tflite is made of: its size, its operators, and which of them makes which tap."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

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
            kind, _, rest = output.rpartition("kv_cache_")
            which, _, block = rest.partition("_")
            tensors[output if not rest or kind else f"kv.{block}.{which}"] = tensor
        nodes[name] = {
            tap: graph.producer[tensor].index
            for tap, tensor in tensors.items()
            if tensor in graph.producer
        }
    return FileFacts(path.stat().st_size, ops, graphs, nodes)
