"""Faults of the embedding."""

from __future__ import annotations

import torch
from litert_torch.generative.layers import model_config as cfg

from edgeverify.suites.selftest.faults.changes import (
    in_bfloat16,
    with_call,
    with_model_config,
    with_tensor,
)
from edgeverify.suites.selftest.faults.fault import Fault
from edgeverify.suites.selftest.faults.ports import ALL, GEMMA
from edgeverify_models.port import Port

OTHERS = tuple(name for name in ALL if name not in GEMMA)
TABLE = "tok_embedding.weight"


def _no_scale(config: cfg.ModelConfig) -> None:
    config.embedding_scale = None


def _squared_scale(config: cfg.ModelConfig) -> None:
    config.embedding_scale = config.embedding_scale**2


def _rounded_scale(config: cfg.ModelConfig) -> None:
    config.embedding_scale = torch.tensor(config.embedding_scale).bfloat16().item()


def _gemma_scale(config: cfg.ModelConfig) -> None:
    config.embedding_scale = config.embedding_dim**0.5


def _first_row_zero(table: torch.Tensor) -> torch.Tensor:
    table[0] = 0
    return table


def _last_row_repeated(table: torch.Tensor) -> torch.Tensor:
    table[-1] = table[-2]
    return table


def _next_token(port: Port) -> Port:
    vocabulary = port.hf_configs["tiny"]["vocab_size"]

    def change(call: dict) -> None:
        call["tokens"] = (call["tokens"] + 1) % vocabulary

    return with_call(port, change)


FAULTS = (
    Fault(
        name="embedding_scale_left_out",
        area="embedding",
        description="Gemma's factor sqrt(hidden_size) is not applied.",
        cause="embedding scale left out",
        ports=GEMMA,
        where=("embed",),
        port=lambda port: with_model_config(port, _no_scale),
        source="litgpt #1031",
    ),
    Fault(
        name="embedding_scale_applied_twice",
        area="embedding",
        description="The factor is in the table and in the forward.",
        cause="embedding scale applied twice",
        ports=GEMMA,
        where=("embed",),
        port=lambda port: with_model_config(port, _squared_scale),
        source="litgpt #1031",
    ),
    Fault(
        name="embedding_scale_in_bfloat16",
        area="embedding",
        description="The factor is rounded to bfloat16, as the original JAX code does.",
        cause="embedding scale rounded to bfloat16",
        ports=GEMMA,
        where=("embed",),
        port=lambda port: with_model_config(port, _rounded_scale),
    ),
    Fault(
        name="embedding_scale_of_another_family",
        area="embedding",
        description="A family without a factor is given Gemma's.",
        cause="embedding scale where there is none",
        ports=OTHERS,
        where=("embed",),
        port=lambda port: with_model_config(port, _gemma_scale),
    ),
    Fault(
        name="embedding_table_in_bfloat16",
        area="embedding",
        description="The table was stored in bfloat16 on its way.",
        cause="embedding table rounded to bfloat16",
        ports=ALL,
        where=("embed",),
        port=lambda port: with_tensor(port, TABLE, in_bfloat16),
    ),
    Fault(
        name="padding_row_zeroed",
        area="embedding",
        description="Row 0 of the table is zero, as nn.Embedding(padding_idx=0) initialises it.",
        cause="row 0 of the embedding table zeroed",
        ports=ALL,
        where=("embed",),
        port=lambda port: with_tensor(port, TABLE, _first_row_zero),
    ),
    Fault(
        name="last_vocabulary_row_lost",
        area="embedding",
        description="The vocabulary was counted one short: its last id reads the row before it.",
        cause="last row of the embedding table lost",
        ports=ALL,
        where=("embed",),
        port=lambda port: with_tensor(port, TABLE, _last_row_repeated),
    ),
    Fault(
        name="token_ids_off_by_one",
        area="embedding",
        description="Every id reads the next row, as where a special token was put in front.",
        cause="token ids off by one",
        ports=ALL,
        where=("embed",),
        port=_next_token,
    ),
)
