"""Collects what ``inspect`` reports of a file, as plain data. Runs in a contained child."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeverify.core.errors import EdgeVerifyError
from edgeverify.litert.bundle.accepts import litert_lm_accepts
from edgeverify.litert.bundle.reader import MODEL, is_bundle, model_of, read_bundle
from edgeverify.litert.dtypes import totals, weights_of
from edgeverify.litert.flatbuffer import ModelFile, Signature
from edgeverify.litert.flatbuffer.quantization import DTYPES
from edgeverify.litert.interface import facts_of

SCHEMA = 1
_SHOWN_METADATA = 200  # bytes


def inspect(path: Path) -> dict[str, Any]:
    """Reads a .tflite or .litertlm.

    Returns:
        ``schema``, ``file``, ``bytes``, ``format``, then ``container`` (of a .litertlm) and
        ``model`` (see ``inspect_model``); each of the last two is None if the file has none.

    Raises:
        ArtifactError: the file cannot be read.
    """
    told = {"schema": SCHEMA, "file": str(path), "format": "tflite", "container": None}
    if not is_bundle(path):
        return {**told, "bytes": path.stat().st_size, "model": inspect_model(path)}
    bundle = read_bundle(path)
    sections = [
        {"kind": s.kind, "start": s.start, "bytes": s.size, "items": s.items}
        for s in bundle.sections
    ]
    container = {
        "version": bundle.version,
        "facts": bundle.facts,
        "sections": sections,
        "metadata": bundle.metadata(),
        "tokenizer": bundle.tokenizer,
    }
    model = None
    if any(section.kind == MODEL for section in bundle.sections):
        with model_of(path) as copy:
            model = inspect_model(copy)
    size = path.stat().st_size
    return {**told, "format": "litertlm", "bytes": size, "container": container, "model": model}


def inspect_model(path: Path) -> dict[str, Any]:
    """Reads a .tflite.

    Returns:
        ``bytes``, ``description``, ``metadata``, ``signatures`` (inputs and outputs with dtype and
        shape), ``llm`` (``litert.interface.Facts``, or ``{"unknown": reason}``), ``litert_lm``
        (whether the engine accepts it, and why), ``ops`` (signature → op → count), ``weights`` and
        ``weights_by_dtype``.

    Raises:
        ArtifactError: the file cannot be read.
    """
    file = ModelFile(path)
    weights = weights_of(file)
    accepted, reason = litert_lm_accepts(file)
    return {
        "bytes": path.stat().st_size,
        "description": (file.model.description or b"").decode(errors="replace"),
        "metadata": _metadata(file),
        "signatures": [_signature(file, s) for s in file.signatures.values()],
        "llm": _llm(file),
        "litert_lm": {"accepts": accepted, "reason": reason},
        "ops": {n: dict(Counter(op.name for op in file.graph(n).ops)) for n in file.signatures},
        "weights": [asdict(weight) for weight in weights],
        "weights_by_dtype": totals(weights),
    }


def _llm(file: ModelFile) -> dict[str, Any]:
    try:
        return facts_of(file).to_dict()
    except EdgeVerifyError as error:
        return {"unknown": error.what}


def _signature(file: ModelFile, signature: Signature) -> dict[str, Any]:
    tensors = file.model.subgraphs[signature.subgraph].tensors

    def side(named: dict[str, int]) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "dtype": DTYPES.get(tensors[index].type, str(tensors[index].type)),
                "shape": [int(n) for n in tensors[index].shape]
                if tensors[index].shape is not None
                else [],
            }
            for name, index in named.items()
        ]

    return {
        "name": signature.name,
        "inputs": side(signature.inputs),
        "outputs": side(signature.outputs),
    }


def _metadata(file: ModelFile) -> dict[str, str]:
    """Returns the metadata: name → text, or the number of bytes if it is not short text."""
    found = {}
    for entry in file.model.metadata or ():
        name = (entry.name or b"").decode(errors="replace")
        data = file.metadata(name) or b""
        text = data.rstrip(b"\0").decode(errors="replace")
        short = len(data) <= _SHOWN_METADATA and text.isprintable()
        found[name] = text if short else f"{len(data)} bytes"
    return found
