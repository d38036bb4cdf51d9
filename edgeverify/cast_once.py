"""Casts each float16 weight once, where ai-edge-quantizer casts it for each operator.

ai-edge-quantizer 0.10 keeps the cast weight of a buffer, but then casts it anew for every operator
that reads it (``materialize_fc_conv`` in algorithms/nonlinear_quantize/float_casting.py). A model
with two signatures so has two equal arrays for each weight, and it compares them as memoryviews
(``_compare_array_or_none`` in qtyping.py), which for float16 unpacks number after number: three
quarters of the time: 163 of 213 s on a busy machine for SmolLM2-135M. One array for both is equal
because it is the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any


@contextmanager
def weights_cast_once() -> Iterator[None]:
    """While it lasts, ai-edge-quantizer's float casting gives one array for one weight.

    It goes through the quantizer's own registration, and puts back what was registered. The file
    is the same, byte by byte (held by a test).
    """
    from ai_edge_quantizer import algorithm_manager as manager
    from ai_edge_quantizer.algorithms.nonlinear_quantize import float_casting
    from ai_edge_quantizer.qtyping import QuantizeMode

    key = manager.AlgorithmName.FLOAT_CASTING

    def register(operator: Any, materialize: Callable[..., Any]) -> None:
        manager.register_quantized_op(
            key, operator, float_casting.init_qsvs, float_casting.calibrate, materialize
        )

    operators = manager.get_supported_ops(key)
    own = {op: manager.get_quantization_func(key, op, QuantizeMode.MATERIALIZE) for op in operators}
    cast: dict[Any, Any] = {}
    for operator, materialize in own.items():
        register(operator, _once(materialize, cast))
    try:
        yield
    finally:
        for operator, materialize in own.items():
            register(operator, materialize)


def _once(materialize: Callable[..., Any], cast: dict[Any, Any]) -> Callable[..., Any]:
    """``materialize`` with the parameters of a weight's first reader for all its readers."""

    def materialized(op_info: Any, graph_info: Any, *rest: Any, **options: Any) -> Any:
        tensors = [graph_info.subgraph_tensors[i] for i in op_info.op.inputs if i >= 0]
        # Tensors of one buffer but another shape are other weights.
        keys = {t.name.decode(): (t.buffer, tuple(t.shape)) for t in tensors if t.shape is not None}
        results = materialize(op_info, graph_info, *rest, **options)
        for result in results:
            result.consumers = result.consumers and [
                consumer
                if consumer.parameters is None
                else replace(
                    consumer,
                    parameters=cast.setdefault(keys[result.tensor_name], consumer.parameters),
                )
                for consumer in result.consumers
            ]
        return results

    return materialized
