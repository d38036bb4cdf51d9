"""Faults of the embedding."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from litert_torch.generative.layers import model_config as cfg

from edgeverify.suites.selftest.faults.fault import Faults
from edgeverify.suites.selftest.faults.port_changes import (
    in_bfloat16,
    tensor,
    with_call,
    with_model_config,
)
from edgeverify.suites.selftest.faults.ports import ALL, GEMMA
from edgeverify_models.port import Port

FAULTS = Faults("embedding", where="embed")
OTHERS = tuple(name for name in ALL if name not in GEMMA)
TABLE = tensor("tok_embedding.weight")


_scale_fault = partial(FAULTS.add, via=with_model_config, ports=GEMMA, kinds="embedding.scale")


@_scale_fault("embedding scale left out", source="litgpt #1031")
def embedding_scale_left_out(config: cfg.ModelConfig) -> None:
    """Gemma's factor sqrt(hidden_size) is not applied."""
    config.embedding_scale = None


@_scale_fault("embedding scale applied twice", source="litgpt #1031")
def embedding_scale_applied_twice(config: cfg.ModelConfig) -> None:
    """The factor is in the table and in the forward."""
    config.embedding_scale = config.embedding_scale**2


@_scale_fault("embedding scale rounded to bfloat16")
def embedding_scale_in_bfloat16(config: cfg.ModelConfig) -> None:
    """The factor is rounded to bfloat16, as the original JAX code does."""
    config.embedding_scale = torch.tensor(config.embedding_scale).bfloat16().item()


@FAULTS.add(
    "embedding scale where there is none",
    via=with_model_config,
    ports=OTHERS,
    kinds="embedding.scale",
)
def embedding_scale_of_another_family(config: cfg.ModelConfig) -> None:
    """A family without a factor is given Gemma's."""
    config.embedding_scale = config.embedding_dim**0.5


@FAULTS.add("embedding table rounded to bfloat16", via=TABLE, kinds="embedding.table")
def embedding_table_in_bfloat16(table: torch.Tensor) -> torch.Tensor:
    """The table was stored in bfloat16 on its way."""
    return in_bfloat16(table)


@FAULTS.add("row 0 of the embedding table zeroed", via=TABLE, kinds="embedding.table")
def padding_row_zeroed(table: torch.Tensor) -> torch.Tensor:
    """Row 0 of the table is zero, as nn.Embedding(padding_idx=0) initialises it."""
    table[0] = 0
    return table


@FAULTS.add("last row of the embedding table lost", via=TABLE, kinds="embedding.table")
def last_vocabulary_row_lost(table: torch.Tensor) -> torch.Tensor:
    """The vocabulary was counted one short: its last id reads the row before it."""
    table[-1] = table[-2]
    return table


@FAULTS.add("token ids off by one", kinds="embedding.ids")
def token_ids_off_by_one(port: Port) -> Port:
    """Every id reads the next row, as where a special token was put in front."""
    vocabulary = port.hf_configs["tiny"]["vocab_size"]

    def change(call: dict[str, Any]) -> None:
        call["tokens"] = (call["tokens"] + 1) % vocabulary

    return with_call(port, change)
