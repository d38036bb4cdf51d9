"""Edits of single operators, each a fault of a converter or of a hand on the file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tests.diagnose.operators.edits import Editor

EDITS: dict[str, Callable[[Editor], None]] = {}


def edit(function: Callable[[Editor], None]) -> Callable[[Editor], None]:
    EDITS[function.__name__] = function
    return function


@edit
def a_weight_of_the_fused_projection(e: Editor) -> None:
    e.scale(e.op("FULLY_CONNECTED", module="TransformerBlock_1"), 1, 1.01, 7)


@edit
def a_weight_of_the_output_projection(e: Editor) -> None:
    e.scale(e.op("FULLY_CONNECTED", 1, module="TransformerBlock_1"), 1, 1.01, 7)


@edit
def a_weight_of_the_gate(e: Editor) -> None:
    e.scale(e.op("FULLY_CONNECTED", 2, module="TransformerBlock_2/"), 1, 1.01, 7)


@edit
def a_weight_of_the_down_projection(e: Editor) -> None:
    e.scale(e.op("FULLY_CONNECTED", -1, module="TransformerBlock_2/"), 1, 0.9, 7)


@edit
def a_weight_of_the_head(e: Editor) -> None:
    e.scale(e.op("FULLY_CONNECTED", -1), 1, 1.01, 7)


@edit
def the_embedding_table(e: Editor) -> None:
    e.scale(e.op("EMBEDDING_LOOKUP"), 1, 1.001)


@edit
def gate_and_up_exchanged(e: Editor) -> None:
    gate, up = (e.op("FULLY_CONNECTED", n, module="TransformerBlock_1") for n in (2, 3))
    assert gate.call.shape == up.call.shape
    first, second = e.constant(gate, 1), e.constant(up, 1)
    e.set_constant(gate, 1, second)
    e.set_constant(up, 1, first)


@edit
def rope_difference_turned_round(e: Editor) -> None:
    e.swap(e.op("SUB", module="TransformerBlock_1"))


@edit
def rope_halves_exchanged(e: Editor) -> None:
    e.swap(e.op("CONCATENATION", module="TransformerBlock_1"))


@edit
def cosine_for_sine(e: Editor) -> None:
    e.become(e.op("SIN"), "COS")


@edit
def a_rope_frequency(e: Editor) -> None:
    op = e.op("COS")
    e.scale(e.flat.producer[op.inputs[0]], 1, 1.001, 3)


@edit
def v_is_taken_for_k(e: Editor) -> None:
    slices = [op for op in e.flat.ops if op.call.name == "SLICE" and "_2/" in op.tensor_name]
    k, v = slices[1], slices[2]
    assert k.call.shape == v.call.shape
    e.set_constant(k, 1, e.constant(v, 1))


@edit
def a_slice_one_head_early(e: Editor) -> None:
    op = e.op("SLICE", 1, module="TransformerBlock_1")
    begin = e.constant(op, 1)
    begin[np.flatnonzero(begin)[0]] -= 1
    e.set_constant(op, 1, begin)


@edit
def scale_of_the_queries(e: Editor) -> None:
    body = e.op("SOFTMAX", 1)
    muls = [
        op
        for op in e.flat.ops
        if op.call.name == "MUL" and op.index < body.index and op.way == body.way
        and op.subgraph == body.subgraph
        and any((c := e.flat.constant(t)) is not None and c.size == 1 for t in op.inputs)
    ]  # fmt: skip
    op = muls[0] if body.way else muls[-1]
    position = next(
        i for i, t in enumerate(op.inputs) if (c := e.flat.constant(t)) is not None and c.size == 1
    )
    e.scale(op, position, 1.001)


@edit
def softmax_beta(e: Editor) -> None:
    op = e.op("SOFTMAX", 1)
    e.raw(op).builtinOptions.beta = 1.01
    e.edited.append(op.place)


@edit
def a_key_that_is_masked(e: Editor) -> None:
    op = e.op("GATHER_ND", -1)
    mask = e.constant(op, 0)
    mask[15, ..., 4] = mask[70, ..., 4] = mask.min()
    mask[:, ..., 3] = mask.min()
    e.set_constant(op, 0, mask)


@edit
def bound_of_the_positions(e: Editor) -> None:
    op = e.op("LESS_EQUAL")
    e.set_constant(op, 1, np.full_like(e.constant(op, 1), 9))


@edit
def eps_of_a_norm(e: Editor) -> None:
    mean = e.op("RSQRT", 2)
    op = next(o for o in reversed(e.flat.ops[: e.flat.ops.index(mean)]) if o.call.name == "ADD")
    e.scale(op, 1, 1.5)


@edit
def weight_of_a_norm(e: Editor) -> None:
    rsqrt = e.op("RSQRT", 2)
    outer = next(op for op in (e.flat.composites or {}).values() if op.index == rsqrt.way[0])
    e.scale(outer, 1, 1.01, 5)
    e.edited.pop()
    last = [op for op in e.flat.ops if op.way == rsqrt.way and op.call.name == "MUL"][-1]
    e.edited.append(last.place)


@edit
def residual_from_elsewhere(e: Editor) -> None:
    adds = [
        op for op in e.flat.ops
        if op.call.name == "ADD" and not op.way and op.tensor_name.split("/")[-1].startswith(
            "litert_torch.generative.layers.attention.TransformerBlock_1")
    ]  # fmt: skip
    op = adds[-1]
    earlier = e.flat.ops[0:1]
    table = e.op("EMBEDDING_LOOKUP")
    earlier = e.flat.consumers[table.outputs[0]]
    e.rewire(op, 0, earlier[0].outputs[0][1])


@edit
def another_activation(e: Editor) -> None:
    e.become(e.op("LOGISTIC", 1), "TANH")


@edit
def exact_gelu_for_tanh(e: Editor) -> None:
    op = e.op("GELU", 1)
    e.raw(op).builtinOptions.approximate = not e.raw(op).builtinOptions.approximate
    e.edited.append(op.place)


@edit
def k_written_to_v(e: Editor) -> None:
    k, v = (e.op("DYNAMIC_UPDATE_SLICE", n) for n in (2, 3))
    assert k.call.shape == v.call.shape
    e.rewire(v, 1, k.inputs[1][1])


@edit
def cache_row(e: Editor) -> None:
    op = e.op("DYNAMIC_UPDATE_SLICE", 2)
    e.set_constant(op, 2, np.array([0, 1, 1, 0][: len(op.call.shape)], np.int32))


@edit
def repeat_for_repeat_interleave(e: Editor) -> None:
    broadcast = e.op("BROADCAST_TO", 2)
    op = e.flat.producer[broadcast.inputs[0]]
    shape = e.constant(op, 1)
    assert shape[1] > 1
    shape[1], shape[2] = shape[2], shape[1]
    to = e.constant(broadcast, 1)
    assert to[1] == to[2] or shape[1] == 1
    if to[1] != to[2]:
        raise AssertionError
    e.set_constant(op, 1, shape)


@edit
def transposed_queries_as_a_reshape(e: Editor) -> None:
    ops = [op for op in e.flat.ops if op.call.name == "TRANSPOSE" and "_1/" in op.tensor_name]
    assert sum(n > 1 for n in ops[0].call.shape) > 2
    e.as_reshape(ops[0])


@edit
def transposed_scores_key_as_a_reshape(e: Editor) -> None:
    matmul = e.op("BATCH_MATMUL", 2)
    assert matmul.way
    op = e.flat.producer[matmul.inputs[1]]
    while op.call.name != "TRANSPOSE":
        op = e.flat.producer[op.inputs[0]]
    e.as_reshape(op)


@edit
def transposed_result_as_a_reshape(e: Editor) -> None:
    matmul = e.op("BATCH_MATMUL", 3)
    out = matmul.outputs[0]
    op = e.flat.consumers[out][0]
    while op.call.name != "TRANSPOSE":
        op = e.flat.consumers[op.outputs[0]][0]
    assert sum(n > 1 for n in op.call.shape) > 2
    e.as_reshape(op)


@edit
def a_softcap(e: Editor) -> None:
    op = e.flat.producer[e.op("TANH", 1).inputs[0]]
    e.scale(op, 1, 1.001)


@edit
def the_final_softcap(e: Editor) -> None:
    op = e.flat.consumers[e.op("TANH", -1).outputs[0]][0]
    e.scale(op, 1, 1.001)


@edit
def the_embedding_scale(e: Editor) -> None:
    table = e.op("EMBEDDING_LOOKUP")
    op = e.flat.consumers[e.flat.consumers[table.outputs[0]][0].outputs[0]][0]
    assert op.call.name == "MUL"
    e.scale(op, 1, 1.001)


@edit
def an_activation_that_is_fused(e: Editor) -> None:
    op = e.op("FULLY_CONNECTED", 1, module="TransformerBlock_0/")
    e.raw(op).builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.RELU
    e.edited.append(op.place)


@edit
def a_product_for_a_sum(e: Editor) -> None:
    adds = [
        op for op in e.flat.ops
        if op.call.name == "ADD" and not op.way and "TransformerBlock_1" in op.tensor_name
        and len(op.inputs) == 2 and all(e.flat.constant(t) is None for t in op.inputs)
    ]  # fmt: skip
    op = adds[-1]
    options = schema.MulOptionsT()
    e.become(op, "MUL", options, schema.BuiltinOptions.MulOptions)


@edit
def two_in_one_block(e: Editor) -> None:
    a_weight_of_the_fused_projection(e)
    e.scale(e.op("FULLY_CONNECTED", -1, module="TransformerBlock_1"), 1, 1.01, 9)


@edit
def one_behind_another(e: Editor) -> None:
    rope_halves_exchanged(e)
    a_weight_of_the_output_projection(e)
    softmax_beta(e)


@edit
def a_bias_that_is_fused(e: Editor) -> None:
    op = e.op("FULLY_CONNECTED", module="TransformerBlock_1")
    assert len(op.inputs) == 3
    e.scale(op, 2, 1.01, 3)
