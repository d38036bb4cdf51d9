"""Finds the standard taps in a converted graph by its topology.

The KV cache writes identify the blocks; attention, projections and residual merges follow from the
dependencies. Tensor names are not used: the converter chooses them and may change them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from edgeverify.core import taps
from edgeverify.litert.flatbuffer.graph import Graph, ModelFile, Op, Signature

# Ops that move or copy values without changing them (including a repeat of KV heads).
LAYOUT_OPS = frozenset(
    {
        "RESHAPE", "TRANSPOSE", "BROADCAST_TO", "TILE", "EXPAND_DIMS", "SQUEEZE", "SLICE",
        "STRIDED_SLICE", "SPLIT", "SPLIT_V", "CONCATENATION", "PACK", "UNPACK", "GATHER", "CAST",
        "QUANTIZE", "DEQUANTIZE",
    }
)  # fmt: skip
_DEAD = "the signature does not compute it: it returns no logits, and nothing else needs it"
_SWAP_TN = (0, 2, 1, 3)


class NotFoundError(Exception):
    """Raised if a tap has no counterpart in this graph; the text says why."""


@dataclass(frozen=True)
class TapRef:
    """The tensor of a subgraph that contains a tap, and how to get the tap's standard shape.

    Attributes:
        tensor: the tensor's number in the subgraph.
        view: the shape to read the tensor with, before the axes are reordered.
        order: the order of the view's axes that gives (B, T, C) or (B, T, N, H).
    """

    tensor: int
    view: tuple[int, ...]
    order: tuple[int, ...]

    def bring(self, array: np.ndarray) -> np.ndarray:
        """Returns the tensor's array in the tap's standard shape."""
        return array.reshape(self.view).transpose(self.order)

    def back(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Reverses ``bring``: returns a tap's array in the shape that the tensor has."""
        return np.ascontiguousarray(array.transpose(np.argsort(self.order)).reshape(shape))


@dataclass
class Located:
    """The taps that were found in one signature.

    Attributes:
        taps: tap → tensor, in forward order. Only inner taps: logits and caches are already
            outputs.
        missing: tap → why it was not found.
    """

    taps: dict[str, TapRef] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def locate_taps(file: ModelFile, signature: str) -> Located:
    """Finds every inner tap of one signature.

    Args:
        file: a .tflite of a decoder with inputs ``tokens``, ``kv_cache_k_{i}``, ``kv_cache_v_{i}``.
        signature: the signature's name.
    """
    return _Locator(file.graph(signature), file.signature(signature), file.kv_layout()).run()


def _is_layout(op: Op) -> bool:
    return op.name in LAYOUT_OPS


class _Locator:
    def __init__(self, graph: Graph, signature: Signature, layout: str) -> None:
        self.graph = graph
        self.signature = signature
        self.layout = layout
        self.length = math.prod(graph.shape(signature.inputs["tokens"]))
        self.found = Located()

    def run(self) -> Located:
        blocks = self.signature.num_blocks
        norms: list[int | None] = []
        for i in range(blocks):
            for which in ("k", "v"):
                self._try(taps.block(i, f"attn.{which}"), partial(self._written, i, which))
            norms.append(self._try(taps.block(i, "attn_norm"), partial(self._attn_norm, i)))
        norms.append(self._try(taps.FINAL_NORM, self._final_norm))

        entry = self._try(taps.EMBED, lambda: self._embed(norms))
        for i in range(blocks):
            entry = self._block(i, entry, norms[i + 1])
        self._sort(blocks)
        return self.found

    def _block(self, i: int, entry: int | None, next_norm: int | None) -> int | None:
        """Finds the other taps of block ``i``; returns the block's output tensor."""
        names = ("attn.q", "attn.out", "ff_norm", "ff.out", "out")
        if next_norm is None and taps.LOGITS not in self.signature.outputs:
            self.found.missing.update({taps.block(i, name): _DEAD for name in names})
            return None
        self._try(taps.block(i, "attn.q"), lambda: self._query(i))
        attn_out = self._try(taps.block(i, "attn.out"), lambda: self._attn_out(i))
        try:
            if entry is None or attn_out is None or next_norm is None:
                raise NotFoundError("what enters or leaves the block was not found either")
            first, last = self._feed_forward(entry, attn_out, next_norm)
        except NotFoundError as error:
            for name in names[2:]:
                self.found.missing[taps.block(i, name)] = str(error)
            return None
        self._add(taps.block(i, "ff_norm"), first)
        self._add(taps.block(i, "ff.out"), last)
        return self._try(taps.block(i, "out"), lambda: self._merge(entry, last, next_norm))

    # Each of the following returns the tensor of one tap, or raises NotFoundError.

    def _written(self, i: int, which: str) -> int:
        return self._update(i, which).inputs[1]

    def _attn_norm(self, i: int) -> int:
        for op in self.graph.backward(self._written(i, "v"), lambda op: not self._projects(op)):
            if self._projects(op):
                return self._activation(op)
        raise NotFoundError("no projection before the V rows that are written to the cache")

    def _final_norm(self) -> int:
        if taps.LOGITS not in self.signature.outputs:
            raise NotFoundError(_DEAD)
        logits = self.signature.outputs[taps.LOGITS]
        for op in self.graph.backward(logits, lambda op: not self._projects(op)):
            if self._projects(op):
                return self._activation(op)
        raise NotFoundError("no projection (the LM head) before the logits")

    def _embed(self, norms: list[int | None]) -> int:
        """Finds block 0's input: the last tensor before its norm that also bypasses the norm."""
        norm = norms[0]
        end = next((n for n in reversed(norms) if n is not None), None)
        if norm is None or end is None or end == norm:
            raise NotFoundError("there is no residual connection around block 0 to tell it by")
        around = self.graph.ancestors(end, without=norm)
        shared = self.graph.ancestors(norm) & around & self.graph.producer.keys()
        shared = {t for t in shared if not self.graph.is_constant(t)}
        if not shared:
            raise NotFoundError("nothing goes around block 0's first norm")
        return max(shared, key=lambda t: self.graph.producer[t].index)

    def _query(self, i: int) -> int:
        op, keys = self._attention(i, "k")
        if op.name != "BATCH_MATMUL":
            return op.inputs[0]
        tensor = next(t for t in op.inputs if t not in keys)
        return self._before_scale(tensor)

    def _attn_out(self, i: int) -> int:
        op, _ = self._attention(i, "v")
        for user in self.graph.forward(op.outputs[0], _is_layout):
            if self._projects(user):
                return self._with_bias(user.outputs[0])
        raise NotFoundError("no projection after the attention")

    def _feed_forward(self, entry: int, attn_out: int, next_norm: int) -> tuple[int, int]:
        """Returns the feed-forward's (input, output).

        Its projections are those of this block that are not in attention.
        """
        attention = self.graph.ancestors(attn_out)
        inside = (self.graph.ancestors(next_norm) & self.graph.descendants(entry)) - attention
        ops = [op for op in self.graph.ops if op.outputs[0] in inside and self._projects(op)]
        inputs, outputs = set(), set()
        for op in ops:
            before = self.graph.ancestors(self._activation(op))
            after = self.graph.descendants(op.outputs[0])
            if not any(other.outputs[0] in before for other in ops):
                inputs.add(self._activation(op))
            if not any(self._activation(other) in after for other in ops):
                outputs.add(self._with_bias(op.outputs[0]))
        if len(inputs) != 1 or len(outputs) != 1:
            raise NotFoundError(
                f"the feed-forward has {len(ops)} projections with {len(inputs)} inputs and "
                f"{len(outputs)} outputs instead of one of each"
            )
        return inputs.pop(), outputs.pop()

    def _merge(self, entry: int, branch: int, end: int) -> int:
        """Finds the nearest tensor on all paths from ``entry`` and from ``branch`` to ``end``.

        It is the lowest common ancestor in the tree of immediate post-dominators (Cooper, Harvey
        and Kennedy, "A Simple, Fast Dominance Algorithm", 2001; one pass, because there are no
        loops).
        """
        inside = self.graph.ancestors(end) & self.graph.descendants(entry)
        parent: dict[int, int] = {end: end}
        depth = {end: 0}

        def common(a: int, b: int) -> int:
            while a != b:
                if depth[a] < depth[b]:
                    a, b = b, a
                a = parent[a]
            return a

        def position(tensor: int) -> int:
            op = self.graph.producer.get(tensor)
            return -1 if op is None else op.index

        for tensor in sorted(inside - {end}, key=position, reverse=True):
            nexts = [
                out
                for op in self.graph.consumers.get(tensor, ())
                for out in op.outputs
                if out in parent
            ]
            node = nexts[0]
            for other in nexts[1:]:
                node = common(node, other)
            parent[tensor] = node
            depth[tensor] = depth[node] + 1
        merged = common(entry, branch)
        if merged in (entry, branch, end):
            raise NotFoundError("the residual stream and the feed-forward do not merge")
        return merged

    # Helpers.

    def _update(self, i: int, which: str) -> Op:
        """Returns the op that writes block ``i``'s rows: the ``i``-th in execution order.

        A block's rows depend on the block before it. The caches' names cannot be used: a signature
        whose inputs are exchanged would have its blocks exchanged.
        """
        blocks = range(self.signature.num_blocks)
        found = [self.graph.cache_update(self.signature, which, block) for block in blocks]
        op = found[i]
        if op is None:
            raise NotFoundError(f"no DYNAMIC_UPDATE_SLICE writes kv_cache_{which}_{i}")
        written = sorted((o for o in found if o is not None), key=lambda o: o.index)
        return written[i] if len(written) == len(found) else op

    def _attention(self, i: int, which: str) -> tuple[Op, set[int]]:
        """Returns the op that attends with block ``i``'s updated cache, and the cache's layouts."""
        cache = self._update(i, which).outputs[0]
        layouts = {cache}
        for op in self.graph.forward(cache, _is_layout):
            if "scaled_dot_product_attention" in op.name or op.name == "BATCH_MATMUL":
                return op, layouts
            if _is_layout(op):
                layouts.update(op.outputs)
        raise NotFoundError(_DEAD if taps.LOGITS not in self.signature.outputs else
                            f"nothing attends with the updated kv_cache_{which}_{i}")  # fmt: skip

    def _before_scale(self, tensor: int) -> int:
        """Walks back over reshapes and the one multiplication by the constant score scale."""
        start = tensor
        while (op := self.graph.producer.get(tensor)) is not None:
            if op.name == "RESHAPE" or (op.name == "TRANSPOSE" and self._swaps_heads(op)):
                tensor = op.inputs[0]
            elif op.name == "MUL":
                for value, scale in (op.inputs, op.inputs[::-1]):
                    if self.graph.is_constant(scale) and math.prod(self.graph.shape(scale)) == 1:
                        return value
                break
            else:
                break
        return start  # a scale of 1 leaves no multiplication behind

    def _swaps_heads(self, op: Op) -> bool:
        order = self.graph.constant(op.inputs[1])
        return order is not None and tuple(order.tolist()) == _SWAP_TN

    def _projects(self, op: Op) -> bool:
        if op.name == "FULLY_CONNECTED":
            return True
        return op.name in ("BATCH_MATMUL", "CONV_2D") and any(
            self.graph.is_constant(t) for t in op.inputs[:2]
        )

    def _activation(self, op: Op) -> int:
        return next(t for t in op.inputs if not self.graph.is_constant(t))

    def _with_bias(self, tensor: int) -> int:
        """Returns the tensor after the addition of a constant vector, if one follows."""
        current = tensor
        while len(users := self.graph.consumers.get(current, [])) == 1:
            op = users[0]
            if op.name == "RESHAPE":
                current = op.outputs[0]
            elif op.name == "ADD" and any(self.graph.is_constant(t) for t in op.inputs):
                return op.outputs[0]
            else:
                break
        return tensor

    def _try(self, tap: str, find: Callable[[], int]) -> int | None:
        try:
            tensor = find()
        except NotFoundError as error:
            self.found.missing[tap] = str(error)
            return None
        self._add(tap, tensor)
        return tensor

    def _add(self, tap: str, tensor: int) -> None:
        size = math.prod(self.graph.shape(tensor))
        leaf = tap.rpartition("attn.")[2] if ".attn." in tap else ""
        if leaf not in ("q", "k", "v"):
            width = size // self.length
            self.found.taps[tap] = TapRef(tensor, (1, self.length, width), (0, 1, 2))
            return
        index = taps.block_index(tap)
        head_dim = self.graph.shape(self.signature.inputs[f"kv_cache_k_{index}"])[
            3
        ]  # in both layouts
        heads = size // (self.length * head_dim)
        if self.layout == "transposed" and leaf == "v":
            view, order = (1, heads, head_dim, self.length), (0, 3, 1, 2)
        elif self.layout == "transposed" and (leaf == "k" or self._heads_first(tensor)):
            view, order = (1, heads, self.length, head_dim), _SWAP_TN
        else:
            view, order = (1, self.length, heads, head_dim), (0, 1, 2, 3)
        self.found.taps[tap] = TapRef(tensor, view, order)

    def _heads_first(self, query: int) -> bool:
        """Checks if a transposed layout's query is (B, N, T, H) or, equivalently, (1, B·K, G·T, H).

        It enters the attention in this form unless it is swapped on its way there. Shapes cannot
        decide this if there are as many heads as positions.
        """
        for op in self.graph.forward(query, lambda op: op.name in ("RESHAPE", "MUL")):
            if op.name == "TRANSPOSE":
                return not self._swaps_heads(op)
        return True

    def _sort(self, blocks: int) -> None:
        order = [t for t in taps.standard_taps(blocks) if not taps.is_outer(t)]
        self.found.taps = {t: self.found.taps[t] for t in order if t in self.found.taps}
        self.found.missing = {t: self.found.missing[t] for t in order if t in self.found.missing}
