"""Reads the interface of a language model's .tflite: signatures, KV cache, masks.

The names are those of litert-torch's Generative API (``ExportableModule``): signatures
``prefill_{n}``, or only ``prefill``, and ``decode``; inputs ``tokens``, ``input_pos``,
``kv_cache_k_{i}``, ``kv_cache_v_{i}`` and, if masks are inputs, ``mask`` or ``mask_{kind}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgeverify.core import taps
from edgeverify.core.errors import ArtifactError
from edgeverify.litert.flatbuffer import ModelFile, Signature
from edgeverify.litert.flatbuffer.graph import KV_INPUT
from edgeverify.litert.flatbuffer.quantization import DTYPES

DECODE = "decode"
WRITES, SHAPES = "writes", "shapes"
_PREFILL = re.compile(r"^prefill(_\d+)?$")
_MASK = re.compile(r"^mask(?:_(\w+))?$")
# The dtypes that a conversation is run with; a cache or mask of another dtype needs another driver.
_NUMBERS = {"tokens": "int32", "input_pos": "int32"}


@dataclass(frozen=True)
class Facts:
    """The facts about a language model's file that are needed to run it.

    Attributes:
        prefill: prefill signature → the number of tokens that it takes, ascending.
        kv_layout: ``default`` or ``transposed``.
        layout_from: ``writes`` if the axis that is written shows the layout, ``shapes`` if nothing
            writes the cache in a known way and the shapes must show it.
        kv_cache_len: the rows of the cache.
        blocks: the number of transformer blocks.
        vocabulary: the width of the logits.
        masks: the kinds of the masks that are inputs, e.g. ``("global",)``; empty if masks are
            built inside the model.
        prefill_logits: whether every prefill signature returns logits.
        decode_batch: conversations that one call of ``decode`` takes.
        others: signature that is not run → why.
    """

    prefill: Mapping[str, int]
    kv_layout: str
    layout_from: str
    kv_cache_len: int
    blocks: int
    vocabulary: int
    masks: tuple[str, ...]
    prefill_logits: bool
    decode_batch: int
    others: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Facts:
        """Restores the facts from JSON."""
        return cls(**{**data, "masks": tuple(data["masks"])})


def facts_of(file: ModelFile) -> Facts:
    """Reads a file's facts.

    Raises:
        ArtifactError: the file is not a language model of this form; the message says what it has.
    """
    usable, others = _usable(file)
    if DECODE not in usable or len(usable) < 2:
        found = [f"{name} ({', '.join(s.inputs)})" for name, s in file.signatures.items()]
        why = "; ".join(f"{name} {reason}" for name, reason in others.items())
        raise _no_model(
            file, f"its signatures are {', '.join(found)}" + (f" ({why})" if why else "")
        )
    layout, source = _layout(file, usable[DECODE])
    decode = usable.pop(DECODE)
    rows = _rows(file, decode, layout)
    prefill = {n: _length(file, n) for n in sorted(usable, key=lambda name: _length(file, name))}
    for name in usable:
        own = _rows(file, usable[name], layout)
        if own != rows:
            what = f"{name} has a KV cache of {own} rows, {DECODE} of {rows}"
            raise _no_model(file, what)
    for name, twin in _twins(prefill).items():
        del prefill[name]
        others[name] = f"takes as many tokens as {twin}"
    return Facts(
        prefill=prefill,
        kv_layout=layout,
        layout_from=source,
        kv_cache_len=rows,
        blocks=decode.num_blocks,
        vocabulary=_shape(file, DECODE, decode.outputs[taps.LOGITS])[-1],
        masks=_mask_kinds([decode, *(usable[name] for name in prefill)]),
        prefill_logits=all(taps.LOGITS in usable[name].outputs for name in prefill),
        decode_batch=_shape(file, DECODE, decode.inputs["tokens"])[0],
        others=others,
    )


def _usable(file: ModelFile) -> tuple[dict[str, Signature], dict[str, str]]:
    """Returns the signatures that a conversation runs, and why the others are not usable."""
    usable: dict[str, Signature] = {}
    others: dict[str, str] = {}
    for name, signature in file.signatures.items():
        if name != DECODE and not _PREFILL.match(name):
            others[name] = f"is neither prefill, prefill_N nor {DECODE}"
        elif reason := _unusual(file, signature):
            others[name] = reason
        else:
            usable[name] = signature
    return usable, others


def _unusual(file: ModelFile, signature: Signature) -> str:
    """Returns why a signature cannot be run, or an empty string."""
    name, blocks = signature.name, signature.num_blocks
    wanted = {"tokens", "input_pos"} | {
        f"kv_cache_{which}_{block}" for which in "kv" for block in range(max(blocks, 1))
    }
    if lacking := sorted(wanted - signature.inputs.keys()):
        return f"has no input {lacking[0]}"
    extra = [n for n in signature.inputs if n not in wanted and not _MASK.match(n)]
    if extra:
        return f"has an input {extra[0]}, which is not known here"
    caches = {n for n in signature.inputs if KV_INPUT.match(n)}
    if unreturned := sorted(caches - signature.outputs.keys()):
        return f"does not return {unreturned[0]}"
    if name == DECODE and taps.LOGITS not in signature.outputs:
        return "returns no logits"
    for key, tensor in signature.inputs.items():
        dtype, expected = _dtype(file, name, tensor), _NUMBERS.get(key, "float32")
        if dtype != expected:
            return f"takes {key} as {dtype}, not as {expected}"
        if KV_INPUT.match(key) and len(_shape(file, name, tensor)) != 4:
            return f"has a {key} of shape {list(_shape(file, name, tensor))}, not of four axes"
    if len(_shape(file, name, signature.inputs["tokens"])) != 2:
        return f"takes tokens of shape {list(_shape(file, name, signature.inputs['tokens']))}"
    return ""


def _layout(file: ModelFile, decode: Signature) -> tuple[str, str]:
    try:
        return file.kv_layout(), WRITES
    except ArtifactError:
        pass
    k, v = (_shape(file, DECODE, decode.inputs[f"kv_cache_{which}_0"]) for which in "kv")
    if k != v and k == (v[0], v[1], v[3], v[2]):
        return "transposed", SHAPES
    # Equal shapes can be the transposed layout only if rows and head_dim are equal.
    if k == v and k[2] != k[3]:
        return "default", SHAPES
    if k == v:
        raise _no_model(file, f"its KV layout cannot be told: K and V are both {list(k)}")
    raise _no_model(file, f"its KV cache is of an unknown layout: K {list(k)}, V {list(v)}")


def _rows(file: ModelFile, signature: Signature, layout: str) -> int:
    shape = _shape(file, signature.name, signature.inputs["kv_cache_k_0"])
    return shape[1 if layout == "default" else 2]


def _length(file: ModelFile, name: str) -> int:
    return _shape(file, name, file.signatures[name].inputs["tokens"])[1]


def _twins(prefill: Mapping[str, int]) -> dict[str, str]:
    """Returns prefill signature → an earlier one that takes as many tokens."""
    first: dict[int, str] = {}
    return {
        name: first[length]
        for name, length in prefill.items()
        if first.setdefault(length, name) != name
    }


def _mask_kinds(signatures: list[Signature]) -> tuple[str, ...]:
    """Returns the mask kinds from the inputs' names; a single ``mask`` is a global one."""
    names = dict.fromkeys(n for s in signatures for n in s.inputs)
    found = [match for name in names if (match := _MASK.match(name))]
    return tuple(dict.fromkeys(match.group(1) or "global" for match in found))


def _tensor(file: ModelFile, signature: str, tensor: int) -> Any:
    return file.model.subgraphs[file.signatures[signature].subgraph].tensors[tensor]


def _shape(file: ModelFile, signature: str, tensor: int) -> tuple[int, ...]:
    shape = _tensor(file, signature, tensor).shape
    return () if shape is None else tuple(int(n) for n in shape)


def _dtype(file: ModelFile, signature: str, tensor: int) -> str:
    raw = _tensor(file, signature, tensor).type
    return DTYPES.get(raw, str(raw))


def _no_model(file: ModelFile, what: str) -> ArtifactError:
    return ArtifactError(
        f"is no language model of a form that is known here: {what}",
        where=file.path,
        expected="signatures prefill_N (or prefill) and decode with inputs tokens, input_pos, "
        "kv_cache_k_0, kv_cache_v_0, …, which they return, and an output logits of decode",
        fix="edgeverify inspect shows what the file has",
    )
