"""Runs the edges of an edge walk on the Hugging Face model, from written KV caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from edgeverify.core import taps
from edgeverify.core.edges import Edge, Rows
from edgeverify.core.trace import Trace


def run(
    model: PreTrainedModel,
    edges: Sequence[Edge],
    kept: Rows,
    tick: Callable[[], None] = lambda: None,
) -> Trace:
    """Runs each edge alone.

    In which precision, and with which roundings, the context says in which it is called:
    ``precision.exact``, ``precision.otherwise``, ``precision.redrawn``, or none.

    Args:
        model: from ``reference.build``.
        edges: the steps; their pads are left out, because nothing depends on them.
        kept: the rows that a conversation has left; float64 for a run in float64.
        tick: called after each edge.

    Returns:
        For each edge ``attn.k`` and ``attn.v`` of each block, which are the rows that the step
        writes, and ``logits``.
    """
    trace = Trace(provenance={"backend": "reference"})
    for edge in edges:
        step, cache = edge.step, DynamicCache()
        state = edge.state(kept)
        for index in range(len(state) // 2 if step.start else 0):
            # The cache's axes: (B, N, S, H).
            pair = (torch.from_numpy(state[taps.kv(index, which)].swapaxes(0, 1)) for which in "kv")
            cache.update(*(rows[None] for rows in pair), layer_idx=index)
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor([step.tokens]),
                position_ids=torch.arange(step.start, step.end)[None],
                past_key_values=cache,
                use_cache=True,
            )
        for index, layer in enumerate(cache.layers):
            for which, rows in (("k", layer.keys), ("v", layer.values)):
                written = rows[:, :, step.start :].transpose(1, 2).numpy()
                trace.add(
                    step.name, taps.block(index, f"attn.{which}"), np.array(written, order="C")
                )
        trace.add(step.name, taps.LOGITS, output.logits.numpy().copy())
        tick()
    return trace
