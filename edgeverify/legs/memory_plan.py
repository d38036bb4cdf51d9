"""Chooses whether a model is kept in memory or streamed from the disk, and says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeverify.core.case import Case
from edgeverify.core.memory import available_memory, resident_memory
from edgeverify.hf.config import meta_model
from edgeverify.hf.remembered import described
from edgeverify.legs.run import Run

GIB = 2**30
# Memory that the libraries take once they are imported (measured: 1.12e9 bytes).
LIBRARIES = 1_150_000_000
# Share of the float32 size if the model is kept in memory: the model itself, and the fused copies
# that the re-authored model makes of q, k and v (0.1 to 0.25 of it; see docs/full-size.md).
WHOLE_SHARE = 1.35
# The same if files are quantized: the weights, the weights that a file computes with, and what the
# control makes of them (measured: 20.3e9 bytes with SmolLM 1.7B, of 6.85e9 in float32).
QUANTIZED_SHARE = 2.8
# Traces that are in memory at once: the reference, the oracle (float64, so it counts as two), the
# model as a whole and block by block, and one that is being written.
WHOLE_TRACES = 6
# The oracle while it is computed, with its copy while it is written. TinyLlama 1.1B took 1.99e9
# bytes, which is 2.3 of its traces besides the rest.
STREAMED_TRACES = 3
# A block in float32 and in float64.
WIDENED = 3


@dataclass(frozen=True)
class Plan:
    """How a check uses memory; all in bytes.

    Attributes:
        whole: approximate need with the model in memory.
        streamed: approximate need with the weights on the disk.
        budget: limit; None if it is unknown, and then a check takes what it needs.
        given: whether the budget is the requested one; otherwise it is what the machine has free.
    """

    whole: int
    streamed: int
    budget: int | None
    given: bool

    @property
    def stream(self) -> bool:
        """Whether the weights stay on the disk."""
        return self.budget is not None and self.whole > self.budget

    @property
    def fits(self) -> bool:
        """Whether one of the two ways stays within the budget."""
        return self.budget is None or min(self.whole, self.streamed) <= self.budget

    def __str__(self) -> str:
        if self.budget is None:
            return "the model is held in memory: how much there is, is not known"
        limit = f"{_gib(self.budget)} {'allowed' if self.given else 'available'}"
        whole, streamed = _gib(self.whole), _gib(self.streamed)
        if not self.fits:
            return (
                f"needs about {streamed} of memory with its weights on the disk ({whole} "
                f"without), and there are {limit}"
            )
        if self.stream:
            return (
                f"weights streamed from the disk: about {streamed} of {limit}, where the whole "
                f"model would take {whole}"
            )
        return f"the model is held in memory: about {whole} of {limit}"


def plan_memory(run: Run, budget: int | None, *, quantized: bool = False) -> Plan:
    """Plans the memory of the reference, the oracle and the re-authored model.

    Args:
        run: its checkpoint and case; no weights are loaded.
        budget: in bytes; the available memory limits it, and replaces it if None.
        quantized: whether quantized files are checked, too.
    """
    total, largest_tensor, largest_block = _sizes(run)
    trace = trace_bytes(run.port.model_config(run.hf_config), run.case)
    limits = [] if budget is None else [budget]
    if (available := available_memory()) is not None:
        limits.append(available + (resident_memory() or 0))
    share = QUANTIZED_SHARE if quantized else WHOLE_SHARE
    limit = min(limits, default=None)
    return Plan(
        whole=LIBRARIES + int(share * total) + WHOLE_TRACES * trace,
        streamed=LIBRARIES + max(largest_tensor, WIDENED * largest_block) + STREAMED_TRACES * trace,
        budget=limit,
        given=limit == budget,
    )


def trace_bytes(config: Any, case: Case) -> int:
    """Approximate bytes of a float32 trace.

    Args:
        config: the re-authored ``ModelConfig``.
        case: its steps.
    """
    rows = sum(len(step.tokens) for step in case.steps)
    # The caches of all steps share their rows, in arrays that double when they are too small.
    cached = 2 * case.steps[-1].end
    values = rows * (2 * config.embedding_dim + config.vocab_size)
    for index in range(config.num_layers):
        attention = config.block_config(index).attn_config
        written = 2 * attention.num_query_groups * attention.head_dim
        query = attention.num_heads * attention.head_dim
        values += rows * (5 * config.embedding_dim + query + written) + cached * written
    return 4 * int(values)


def _sizes(run: Run) -> tuple[int, int, int]:
    """Float32 bytes of all parameters, of the largest one, and of the largest block."""
    make = lambda: _measured(meta_model(run.hf_config))  # noqa: E731
    total, tensor, block = described(
        "sizes", run.hf_config, ("legs/memory_plan.py",), make, run.cache
    )
    return total, tensor, block


def _measured(model: Any) -> list[int]:
    sizes = {name: 4 * parameter.numel() for name, parameter in model.named_parameters()}
    blocks: dict[str, int] = {}
    for name, size in sizes.items():
        owner, _, rest = name.partition("layers.")
        if rest:
            block = owner + rest.split(".")[0]
            blocks[block] = blocks.get(block, 0) + size
    return [sum(sizes.values()), max(sizes.values()), max(blocks.values(), default=0)]


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
