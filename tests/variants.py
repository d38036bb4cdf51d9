"""Ports that are wrong in one known way, for tests that must see them caught."""

from __future__ import annotations

from torch import nn

import edgeverify_models as models
from edgeverify.suites.selftest.faults import catalogue
from edgeverify.suites.selftest.faults.port_changes import with_config, with_hf, with_model
from edgeverify_models.port import Port


def faulty(name: str, port: str) -> Port:
    """A port with a fault of the catalogue."""
    change = catalogue.find(name).port
    assert change is not None
    return change(models.load(port))


def norm_eps_one_percent_off() -> Port:
    return faulty("norm_eps_one_percent_off", "gemma2")


def embedding_scale_in_bfloat16() -> Port:
    return faulty("embedding_scale_in_bfloat16", "gemma1")


def query_scale_off() -> Port:
    return faulty("query_pre_attn_scalar_off", "gemma2")


def rms_eps_1_1e_5() -> Port:
    port = with_hf(models.load("tinyllama"), rms_norm_eps=1e-5)
    return with_config(port, rms_norm_eps=1.1e-5)


def gate_and_up_swapped_in_block_1() -> Port:
    return faulty("gate_and_up_swapped_in_block_1", "tinyllama")


def rope_base_off() -> Port:
    return faulty("rope_base_of_the_library", "smollm")


def fourth_layer_masked_wrongly() -> Port:
    return faulty("fourth_layer_slides", "gemma2")


def final_norm_past_its_hooks() -> Port:
    """Right, but its final norm is called so that nothing can be fed into it."""

    def change(model: nn.Module) -> None:
        kind = type(model.final_norm)
        model.final_norm.__class__ = type("Direct", (kind,), {"__call__": kind.forward})

    return with_model(models.load("phi2"), change)


def logits_of_the_last_position_only() -> Port:
    return faulty("logits_of_the_last_position_alone", "smollm")


def kv_row_off_by_one_in_decode() -> Port:
    return faulty("cache_row_off_by_one_in_decode", "tinyllama")
