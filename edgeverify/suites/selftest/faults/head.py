"""Faults of the LM head and of what follows it."""

from __future__ import annotations

import torch
from torch.nn import functional

from edgeverify.suites.selftest.faults.fault import Faults
from edgeverify.suites.selftest.faults.port_changes import (
    State,
    in_bfloat16,
    tensor,
    with_config,
    with_logits,
    with_state,
)
from edgeverify.suites.selftest.faults.ports import ALL_BUT_GEMMA2
from edgeverify_models.port import Port

FAULTS = Faults("head", where="logits")
WEIGHT = tensor("lm_head.weight")
UNTIED = ("tinyllama", "phi2")
TIED = ("gemma1", "gemma2", "smollm", "smollm2")
TIED_SOURCE = "transformers #42612"


@FAULTS.add("final softcap left out", ports="gemma2", kinds="head.softcap")
def final_softcap_left_out(port: Port) -> Port:
    """The logits are not capped."""
    return with_config(port, final_logit_softcapping=None)


@FAULTS.add("final softcap 30", ports="gemma2", kinds="head.softcap")
def final_softcap_of_the_config_class(port: Port) -> Port:
    """The cap is 30, the default of transformers' Gemma2Config."""
    return with_config(port, final_logit_softcapping=30.0)


@FAULTS.add("final softcap added", via=with_logits, ports=ALL_BUT_GEMMA2, kinds="head.softcap")
def final_softcap_where_there_is_none(logits: torch.Tensor) -> torch.Tensor:
    """The logits are capped in a family that does not."""
    return torch.tanh(logits / 30) * 30


@FAULTS.add("head tied", via=with_state, ports=UNTIED, kinds="head.weight", source=TIED_SOURCE)
def untied_head_ignored(state: State) -> None:
    """The checkpoint's own head is ignored; the embedding table is used."""
    state["lm_head.weight"] = state["tok_embedding.weight"]


@FAULTS.add(
    "head tied",
    ports=TIED,
    refusal="lm_head",
    kinds="head.weight",
    hf={"tie_word_embeddings": False},
    source=TIED_SOURCE,
)
def untied_head_of_a_tied_family_ignored(port: Port) -> Port:
    """The config does not tie the head, the port does; the checkpoint has both."""
    return with_config(port, tie_word_embeddings=True)


@FAULTS.add("head bias left out", via=tensor("lm_head.bias"), ports="phi2", kinds="bias")
def head_bias_dropped(bias: torch.Tensor) -> torch.Tensor:
    """The bias of Phi-2's LM head is zero."""
    return torch.zeros_like(bias)


@FAULTS.add("head rounded to bfloat16", via=WEIGHT, kinds="head.weight")
def head_in_bfloat16(weight: torch.Tensor) -> torch.Tensor:
    """The LM head is rounded to bfloat16."""
    return in_bfloat16(weight)


@FAULTS.add("head rows rolled", via=WEIGHT, kinds="head.weight")
def head_rows_rolled(weight: torch.Tensor) -> torch.Tensor:
    """Every logit belongs to the token before."""
    return weight.roll(1, 0)


@FAULTS.add("one head row zeroed", via=WEIGHT, kinds="head.weight")
def head_row_zeroed(weight: torch.Tensor) -> torch.Tensor:
    """One token's row of the head is zero."""
    weight[weight.shape[0] // 2] = 0
    return weight


@FAULTS.add("log-probabilities for logits", via=with_logits)
def log_softmax_for_logits(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities are returned: the greedy tokens are the same."""
    return functional.log_softmax(logits, -1)


@FAULTS.add("logits rounded to bfloat16", via=with_logits, kinds="half")
def logits_in_bfloat16(logits: torch.Tensor) -> torch.Tensor:
    """The logits are rounded to bfloat16 before they are returned."""
    return in_bfloat16(logits)


@FAULTS.add("vocabulary padded", via=with_logits, kinds="shape")
def vocabulary_padded(logits: torch.Tensor) -> torch.Tensor:
    """The logits have rows of padding behind the vocabulary."""
    return functional.pad(logits, (0, 5))


@FAULTS.add("head tied", ports=UNTIED, refusal="lm_head", kinds="head.weight", source=TIED_SOURCE)
def head_assumed_to_be_tied(port: Port) -> Port:
    """The config class's default ties the head; the checkpoint does not."""
    return with_config(port, tie_word_embeddings=True)
