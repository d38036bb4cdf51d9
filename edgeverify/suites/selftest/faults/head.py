"""Faults of the LM head and of what follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from edgeverify.suites.selftest.faults.changes import (
    State,
    in_bfloat16,
    with_config,
    with_output,
    with_state,
    with_tensor,
)
from edgeverify.suites.selftest.faults.fault import REFUSED, Fault
from edgeverify.suites.selftest.faults.ports import ALL
from edgeverify_models.port import Port

WEIGHT = "lm_head.weight"
LOGITS = ("logits",)
UNTIED = ("tinyllama", "phi2")
TIED = ("gemma1", "gemma2", "smollm", "smollm2")


def _logits(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[Port], Port]:
    def change_output(output: dict[str, Any], call: dict[str, Any]) -> None:
        if "logits" in output:
            output["logits"] = change(output["logits"])

    return lambda port: with_output(port, change_output)


def _tied(state: State) -> None:
    state[WEIGHT] = state["tok_embedding.weight"]


def _no_bias(state: State) -> None:
    state["lm_head.bias"] = torch.zeros_like(state["lm_head.bias"])


def _rows_rolled(weight: torch.Tensor) -> torch.Tensor:
    return weight.roll(1, 0)


def _one_row_zero(weight: torch.Tensor) -> torch.Tensor:
    weight[weight.shape[0] // 2] = 0
    return weight


FAULTS = (
    Fault(
        name="final_softcap_left_out",
        area="head",
        description="The logits are not capped.",
        cause="final softcap left out",
        ports=("gemma2",),
        where=LOGITS,
        port=lambda port: with_config(port, final_logit_softcapping=None),
    ),
    Fault(
        name="final_softcap_of_the_config_class",
        area="head",
        description="The cap is 30, the default of transformers' Gemma2Config.",
        cause="final softcap 30",
        ports=("gemma2",),
        where=LOGITS,
        port=lambda port: with_config(port, final_logit_softcapping=30.0),
    ),
    Fault(
        name="final_softcap_where_there_is_none",
        area="head",
        description="The logits are capped in a family that does not.",
        cause="final softcap added",
        ports=tuple(name for name in ALL if name != "gemma2"),
        where=LOGITS,
        port=_logits(lambda logits: torch.tanh(logits / 30) * 30),
    ),
    Fault(
        name="untied_head_ignored",
        area="head",
        description="The checkpoint's own head is ignored; the embedding table is used.",
        cause="head tied",
        ports=UNTIED,
        where=LOGITS,
        port=lambda port: with_state(port, _tied),
        source="transformers #42612",
    ),
    Fault(
        name="untied_head_of_a_tied_family_ignored",
        area="head",
        description="The config does not tie the head, the port does; the checkpoint has both.",
        cause="head tied",
        ports=TIED,
        where=(REFUSED,),
        told="lm_head",
        port=lambda port: with_config(port, tie_word_embeddings=True),
        hf={"tie_word_embeddings": False},
        source="transformers #42612",
    ),
    Fault(
        name="head_bias_dropped",
        area="head",
        description="The bias of Phi-2's LM head is zero.",
        cause="head bias left out",
        ports=("phi2",),
        where=LOGITS,
        port=lambda port: with_state(port, _no_bias),
    ),
    Fault(
        name="head_in_bfloat16",
        area="head",
        description="The LM head is rounded to bfloat16.",
        cause="head rounded to bfloat16",
        ports=ALL,
        where=LOGITS,
        port=lambda port: with_tensor(port, WEIGHT, in_bfloat16),
    ),
    Fault(
        name="head_rows_rolled",
        area="head",
        description="Every logit belongs to the token before.",
        cause="head rows rolled",
        ports=ALL,
        where=LOGITS,
        port=lambda port: with_tensor(port, WEIGHT, _rows_rolled),
    ),
    Fault(
        name="head_row_zeroed",
        area="head",
        description="One token's row of the head is zero.",
        cause="one head row zeroed",
        ports=ALL,
        where=LOGITS,
        port=lambda port: with_tensor(port, WEIGHT, _one_row_zero),
    ),
    Fault(
        name="log_softmax_for_logits",
        area="head",
        description="Log-probabilities are returned: the greedy tokens are the same.",
        cause="log-probabilities for logits",
        ports=ALL,
        where=LOGITS,
        port=_logits(lambda logits: functional.log_softmax(logits, -1)),
    ),
    Fault(
        name="logits_in_bfloat16",
        area="head",
        description="The logits are rounded to bfloat16 before they are returned.",
        cause="logits rounded to bfloat16",
        ports=ALL,
        where=LOGITS,
        port=_logits(in_bfloat16),
    ),
    Fault(
        name="vocabulary_padded",
        area="head",
        description="The logits have rows of padding behind the vocabulary.",
        cause="vocabulary padded",
        ports=ALL,
        where=LOGITS,
        port=_logits(lambda logits: functional.pad(logits, (0, 5))),
    ),
    Fault(
        name="head_assumed_to_be_tied",
        area="head",
        description="The config class's default ties the head; the checkpoint does not.",
        cause="head tied",
        ports=UNTIED,
        where=(REFUSED,),
        told="lm_head",
        port=lambda port: with_config(port, tie_word_embeddings=True),
        source="transformers #42612",
    ),
)
