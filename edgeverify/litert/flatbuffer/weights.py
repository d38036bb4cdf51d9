"""Identifies the weights among the constants of a .tflite by the graph around them.

A weight is identified by its purpose: the projection that makes ``attn.out``, the norm before the
projections, and so on (see ``flatbuffer.locate``). Tensor names are not used.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from ai_edge_litert import schema_py_generated as schema

from edgeverify.core import taps
from edgeverify.litert.flatbuffer import Located, ModelFile, Signature
from edgeverify.litert.flatbuffer.graph import Graph, Op
from edgeverify.litert.flatbuffer.locate import LAYOUT_OPS
from edgeverify.litert.flatbuffer.quantization import constant_of

# The types that weights are stored as. An int32 constant is a shape or an index.
_STORED = frozenset(
    {
        schema.TensorType.FLOAT32,
        schema.TensorType.FLOAT16,
        schema.TensorType.BFLOAT16,
        schema.TensorType.INT8,
        schema.TensorType.UINT8,
        schema.TensorType.INT16,
        schema.TensorType.INT4,
        schema.TensorType.UINT4,
        schema.TensorType.INT2,
    }
)
# The names of litert-torch's modules for the two tables.
EMBEDDING, HEAD = "tok_embedding.weight", "lm_head.weight"
_LOOKUPS = ("EMBEDDING_LOOKUP", "GATHER")


@dataclass
class Weights:
    """The weights of one signature.

    Attributes:
        graph: the signature's graph.
        signature: the signature's inputs and outputs.
        located: the signature's taps.
        tensors: parameter of the Generative API → the constant's number in the subgraph. For a
            quantized weight that is dequantized first, it is the stored constant.
        norms: parameter of a norm, without ``.weight`` → the op that computes the norm.
        unknown: constants that are used as weights → why their parameter is not known.
        ends: for each block, the index of the op that makes the block's output.
        untold: blocks with a projection or norm whose purpose is not known.
    """

    graph: Graph
    signature: Signature
    located: Located
    tensors: dict[str, int] = field(default_factory=dict)
    norms: dict[str, Op] = field(default_factory=dict)
    unknown: dict[int, str] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    untold: set[int] = field(default_factory=set)

    def block_of(self, op: Op) -> int:
        """Returns the block that an op belongs to; the number of blocks for ops after the last."""
        # An op of block i depends on the output of block i - 1, and the output of block i depends
        # on the op. So the op lies between the two in every order of execution.
        return bisect_left(self.ends, op.index)


def find_weights(file: ModelFile, name: str, located: Located) -> Weights:
    """Finds the weights of one signature.

    Args:
        file: the .tflite.
        name: the signature.
        located: the result of ``locate_taps``.
    """
    found = Weights(file.graph(name), file.signature(name), located)
    _Finder(found).run()
    return found


class _Finder:
    """Names the constants of one graph."""

    def __init__(self, found: Weights) -> None:
        self.found = found
        self.graph = found.graph
        self.blocks = found.signature.num_blocks
        for i in range(self.blocks):
            ref = found.located.taps.get(taps.block(i, "out"))
            end = len(self.graph.ops) if ref is None else self.graph.producer[ref.tensor].index
            found.ends.append(end)

    def run(self) -> None:
        self.roles = {i: self._roles(i) for i in range(self.blocks)}
        for op in self.graph.ops:
            if op.name in _LOOKUPS:
                for tensor in self._constants(op.inputs[:2]):
                    self._put(EMBEDDING, tensor)
            elif op.name == "FULLY_CONNECTED":
                self._projection(op)
            elif "norm" in op.name:
                self._norm(op)
            else:
                for tensor in self._constants(op.inputs):
                    self.found.unknown[tensor] = f"a {op.name} takes it"
        for tensor in self.found.tensors.values():
            self.found.unknown.pop(tensor, None)

    def _projection(self, op: Op) -> None:
        name = self._projection_name(op)
        for tensor in self._constants(op.inputs[1:2]):
            self._name(f"{name}.weight" if name else "", tensor, op)
        for tensor in self._constants(op.inputs[2:3]):
            self._name(f"{name}.bias" if name else "", tensor, op)

    def _projection_name(self, op: Op) -> str:
        block = self.found.block_of(op)
        if block >= self.blocks:
            return HEAD.removesuffix(".weight")
        at = f"transformer_blocks.{block}."
        roles = self.roles[block]
        if op.index in roles:
            return roles[op.index] and at + roles[op.index]
        if len(inner := self._inner(block)) == 1:
            return f"{at}ff.w1"
        gates = [other.index for other in inner if self._is_gate(other)]
        if len(inner) != 2 or len(gates) != 1:
            return ""
        return f"{at}ff.w1" if op.index == gates[0] else f"{at}ff.w3"

    def _roles(self, block: int) -> dict[int, str]:
        """Returns op → name for projections known by taps; "" if it may be any of q, k and v."""
        roles: dict[int, str] = {}
        for tap, name in (("attn.out", "atten_func.output_projection"), ("ff.out", "ff.w2")):
            roles |= dict.fromkeys(self._before(block, tap), name)
        found = {part: self._before(block, f"attn.{part}") for part in "qkv"}
        entering = set().union(*found.values())
        if len(entering) == 1:
            return roles | dict.fromkeys(entering, "atten_func.qkv_projection")
        roles |= dict.fromkeys(entering, "")
        for part, ops in found.items():
            if len(ops) == 1 and not any(ops & found[other] for other in found if other != part):
                roles |= dict.fromkeys(ops, f"atten_func.{part}_projection")
        return roles

    def _before(self, block: int, tap: str) -> set[int]:
        """Returns the projections that make a tap, without the projections before them."""
        ref = self.found.located.taps.get(taps.block(block, tap))
        if ref is None:
            return set()
        is_projection = lambda op: op.name == "FULLY_CONNECTED"  # noqa: E731
        made_by = self.graph.backward(ref.tensor, lambda op: not is_projection(op))
        return {op.index for op in made_by if is_projection(op)}

    def _inner(self, block: int) -> list[Op]:
        """Returns a block's projections that no tap identifies: those into the feed-forward."""
        return [
            op
            for op in self.graph.ops
            if op.name == "FULLY_CONNECTED"
            and self.found.block_of(op) == block
            and op.index not in self.roles[block]
        ]

    def _is_gate(self, op: Op) -> bool:
        """Checks whether an activation, not only a product, takes the projection's output."""
        passes = lambda user: user.name in LAYOUT_OPS  # noqa: E731
        users = [u for u in self.graph.forward(op.outputs[0], passes) if not passes(u)]
        return any(user.name != "MUL" for user in users)

    def _norm(self, op: Op) -> None:
        block = self.found.block_of(op)
        name = "final_norm" if block >= self.blocks else self._norm_name(op, block)
        if name:
            self.found.norms[name] = op
        for kind, inputs in (("weight", op.inputs[1:2]), ("bias", op.inputs[2:3])):
            for tensor in self._constants(inputs):
                self._name(f"{name}.{kind}" if name else "", tensor, op)

    def _norm_name(self, op: Op, block: int) -> str:
        """Names a norm by its place among the block's projections; "" if one is not found."""
        at = f"transformer_blocks.{block}."
        index = {name: i for i, name in self.roles[block].items()}
        out, down = index.get("atten_func.output_projection"), index.get("ff.w2")
        qkv = min((i for i in self.roles[block] if i not in (out, down)), default=None)
        key = self.found.located.taps.get(taps.block(block, "attn.k"))
        if qkv is None:
            return ""
        if op.index < qkv:
            return f"{at}pre_atten_norm"
        if key is not None and op.outputs[0] in self.graph.ancestors(key.tensor):
            return f"{at}atten_func.key_norm"
        if out is None or (op.index < out and key is None):
            return ""
        if op.index < out:
            return f"{at}atten_func.query_norm"
        if down is None:
            return ""
        if op.index > down:
            return f"{at}ff.post_ff_norm"
        between = [o for o in self.graph.ops if "norm" in o.name and out < o.index < down]
        if len(between) == 1:
            return f"{at}post_atten_norm"
        return f"{at}post_atten_norm" if op is between[0] else f"{at}ff.pre_ff_norm"

    def _constants(self, inputs: tuple[int, ...]) -> Iterator[int]:
        """Yields the stored constants of more than one element among an op's inputs."""
        for tensor in inputs:
            many = math.prod(self.graph.shape(tensor)) > 1
            if many and self.graph.is_constant(tensor):
                source = constant_of(self.graph, tensor)
                if self.graph.raw.tensors[source].type in _STORED:
                    yield source

    def _name(self, name: str, tensor: int, op: Op) -> None:
        if name:
            self._put(name, tensor)
        else:
            self.found.unknown[tensor] = f"op {op.index}, a {op.name}, is none that is known here"
            self.found.untold.add(self.found.block_of(op))

    def _put(self, name: str, tensor: int) -> None:
        if self.found.tensors.setdefault(name, tensor) != tensor:
            self.found.unknown[tensor] = f"another constant is {name}, too"
