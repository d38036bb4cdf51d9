"""Subgraphs made by hand, as they stand in a .tflite, for tests of what is told by topology."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers  # type: ignore[import-untyped]

from edgeverify.litert.flatbuffer import Located, Signature, TapRef
from edgeverify.litert.flatbuffer.graph import Graph
from edgeverify.litert.flatbuffer.weights import Weights, find_weights

FLOAT32, INT32 = schema.TensorType.FLOAT32, schema.TensorType.INT32
COMPOSITE = schema.BuiltinOperator.STABLEHLO_COMPOSITE


def flex(**attributes: Any) -> np.ndarray:
    """Attributes as a composite has them."""
    return np.frombuffer(bytes(flexbuffers.Dumps(attributes)), np.uint8)


class Sketch:
    """A subgraph as it is drawn: tensors by number, ops in order of execution."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [SimpleNamespace(data=None, offset=0)]
        self.operators: list[Any] = []
        self.codes: list[Any] = []

    def tensor(self, *shape: int, dtype: int = FLOAT32, buffer: int = 0) -> int:
        """A tensor that an op makes or that comes from outside."""
        name = f"tensor_{len(self.tensors)}".encode()
        self.tensors.append(
            SimpleNamespace(shape=np.array(shape), type=dtype, buffer=buffer, name=name)
        )
        return len(self.tensors) - 1

    def constant(self, values: Any) -> int:
        """A float32 or int32 constant with a buffer of its own."""
        array = np.asarray(values)
        array = array.astype(np.int32 if array.dtype.kind == "i" else np.float32)
        data = np.frombuffer(array.tobytes(), np.uint8)
        self.buffers.append(SimpleNamespace(data=data, offset=0))
        dtype = INT32 if array.dtype == np.int32 else FLOAT32
        return self.tensor(*array.shape, dtype=dtype, buffer=len(self.buffers) - 1)

    def weight(self, *shape: int) -> int:
        """A constant whose values do not matter here."""
        return self.constant(np.arange(math.prod(shape), dtype=np.float32).reshape(shape))

    def op(self, name: str, *inputs: int, shape: tuple[int, ...], **attributes: Any) -> int:
        """Adds an op (a composite, if its name is no builtin's); returns what it makes."""
        code = getattr(schema.BuiltinOperator, name, COMPOSITE)
        options = None
        if code == COMPOSITE:
            stored = flex(**attributes)
            options = SimpleNamespace(name=name.encode(), compositeAttributes=stored)
        self.codes.append(SimpleNamespace(builtinCode=code, deprecatedBuiltinCode=0))
        made = self.tensor(*shape)
        self.operators.append(
            SimpleNamespace(
                opcodeIndex=len(self.codes) - 1,
                inputs=inputs,
                outputs=(made,),
                builtinOptions2=options,
            )
        )
        return made

    def composites(self, word: str) -> list[Any]:
        """The composites with a word in their names, each with its attributes."""
        found = (operator.builtinOptions2 for operator in self.operators)
        return [options for options in found if options and word in options.name.decode()]

    def graph(self) -> Graph:
        subgraph = SimpleNamespace(tensors=self.tensors, operators=self.operators)
        model = SimpleNamespace(
            subgraphs=[subgraph], operatorCodes=self.codes, buffers=self.buffers
        )
        return Graph(model, 0)

    def file(self, signature: Signature) -> Any:
        """As much of a ``ModelFile`` as its constants are read by; one signature."""
        spans, data = {}, b""
        for number, buffer in enumerate(self.buffers):
            if buffer.data is not None:
                spans[number] = (len(data), len(buffer.data))
                data += buffer.data.tobytes()
        graphs, signatures = {signature.name: self.graph()}, {signature.name: signature}
        return SimpleNamespace(
            map=data,
            buffer_span=spans.get,
            forget=lambda buffer: None,
            graph=graphs.__getitem__,
            signature=signatures.__getitem__,
        )


WIDTH, HEAD_DIM = 4, 2
WIDE = (1, 1, WIDTH)


@dataclass
class Decoder:
    """A decoder as it is drawn, with its taps, and the constant that each parameter is."""

    sketch: Sketch = field(default_factory=Sketch)
    expected: dict[str, int] = field(default_factory=dict)
    found: Located = field(default_factory=Located)
    caches: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    logits: int = 0
    blocks: int = 0

    def tap(self, name: str, tensor: int) -> int:
        self.found.taps[name] = TapRef(tensor, WIDE, (0, 1, 2))
        return tensor

    def take(self, parameter: str, *shape: int) -> int:
        tensor = self.sketch.weight(*shape)
        if parameter:
            self.expected[parameter] = tensor
        return tensor

    def norm(self, x: int, parameter: str, kind: str = "odml.rms_norm", bias: bool = False) -> int:
        given = [x, self.take(f"{parameter}.weight", WIDTH)]
        if bias:
            given.append(self.take(f"{parameter}.bias", WIDTH))
        return self.sketch.op(kind, *given, shape=WIDE, epsilon=0.25)

    def project(self, x: int, parameter: str, rows: int = WIDTH, bias: bool = False) -> int:
        given = [x, self.take(parameter and f"{parameter}.weight", rows, WIDTH)]
        if bias:
            given.append(self.take(f"{parameter}.bias", rows))
        return self.sketch.op("FULLY_CONNECTED", *given, shape=(1, 1, rows))

    def inner(self, x: int, at: str, kind: str, bias: bool) -> int:
        """Up to ``ff.w2``'s input: with a gate, without one, or with more than is known."""
        op = self.sketch.op
        w1 = self.project(x, f"{at}ff.w1" if kind in ("gated", "plain") else "", bias=bias)
        layout = op("RESHAPE", w1, shape=WIDE)
        gate = op("MUL", layout, op("LOGISTIC", layout, shape=WIDE), shape=WIDE)
        if kind == "plain":
            return gate
        w3 = self.project(x, f"{at}ff.w3" if kind == "gated" else "", bias=bias)
        if kind == "two gates":
            w3 = op("LOGISTIC", w3, shape=WIDE)
        product = op("MUL", gate, op("RESHAPE", w3, shape=WIDE), shape=WIDE)
        if kind == "three":
            product = op("MUL", product, self.project(x, ""), shape=WIDE)
        return product

    def block(
        self,
        x: int,
        *,
        inner: str = "gated",
        bias: bool = False,
        heads: bool = False,
        own: bool = False,
        apart: str = "",
    ) -> int:
        """One block on ``x``: ``heads`` have norms, the feed-forward has norms of its ``own``; q, k
        and v are three projections ``apart``, or three that are put together before they are used,
        or q is one and k and v are another."""
        i, op = self.blocks, self.sketch.op
        self.blocks += 1
        self.caches[f"kv_cache_k_{i}"] = self.sketch.tensor(1, 8, 1, HEAD_DIM)
        at, tap = f"transformer_blocks.{i}.", f"blocks.{i}."
        normed = self.norm(x, f"{at}pre_atten_norm", bias=bias)
        if apart:
            names = [f"{at}atten_func.{part}_projection" for part in "qkv"]
            told = {"three": names, "together": ["", "", ""], "two": [names[0], ""]}[apart]
            parts = [self.project(normed, name, bias=bias) for name in told]
        else:
            parts = [self.project(normed, f"{at}atten_func.qkv_projection", 3 * WIDTH, bias)]
        if apart == "together":
            parts = [op("CONCATENATION", *parts, shape=(1, 1, 3 * WIDTH))]
        q, k, v = (op("SLICE", x, shape=WIDE) for x in (parts[0], parts[-2:][0], parts[-1]))
        if apart == "two":
            k = op("SLICE", parts[1], shape=WIDE)
        if heads:
            k = self.norm(k, f"{at}atten_func.key_norm")
            q = self.norm(q, f"{at}atten_func.query_norm")
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            self.tap(f"{tap}attn.{name}", tensor)
        mixed = op("odml.scaled_dot_product_attention", q, k, v, shape=WIDE)
        attended = self.project(mixed, f"{at}atten_func.output_projection", bias=bias)
        self.tap(f"{tap}attn.out", attended)
        if own:
            attended = self.norm(attended, f"{at}post_atten_norm")
        middle = op("ADD", x, attended, shape=WIDE)
        normed = self.norm(middle, f"{at}ff.pre_ff_norm" if own else f"{at}post_atten_norm")
        down = self.project(self.inner(normed, at, inner, bias), f"{at}ff.w2", bias=bias)
        self.tap(f"{tap}ff.out", down)
        if own:
            down = self.norm(down, f"{at}ff.post_ff_norm")
        return self.tap(f"{tap}out", op("ADD", middle, down, shape=WIDE))

    def start(self, lookup: str = "EMBEDDING_LOOKUP") -> int:
        self.tokens = tokens = self.sketch.tensor(1, 1, dtype=INT32)
        table = self.take("tok_embedding.weight", 9, WIDTH)
        given = (tokens, table) if lookup == "EMBEDDING_LOOKUP" else (table, tokens)
        return self.sketch.op(lookup, *given, shape=WIDE)

    def end(self, x: int, bias: bool = False) -> int:
        self.logits = self.project(self.norm(x, "final_norm", bias=bias), "lm_head", 9, bias)
        return self.logits

    @property
    def signature(self) -> Signature:
        """It takes one token and has a cache of 8 rows and one head."""
        caches = self.caches or {f"kv_cache_k_{i}": 0 for i in range(self.blocks)}
        inputs = {"tokens": self.tokens, **caches}
        return Signature("decode", 0, 0, inputs, {"logits": self.logits})

    def weights(self) -> Weights:
        return find_weights(self.sketch.file(self.signature), "decode", self.found)


def decoder(count: int = 2, lookup: str = "EMBEDDING_LOOKUP", **options: object) -> Decoder:
    made = Decoder()
    x = made.start(lookup)
    for _ in range(count):
        x = made.block(x, **options)  # type: ignore[arg-type]
    made.end(x, bias=bool(options.get("bias")))
    return made
