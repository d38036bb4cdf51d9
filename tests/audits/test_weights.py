"""Every tensor exactly once, bit by bit: what is changed, moved, dropped or doubled is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeverify.audits.bitwise import Difference, checksums, difference
from edgeverify.audits.weight_map import Span, places
from edgeverify.audits.weights import audit_module
from edgeverify.core.results import FAIL, PASS, AuditResult, Check
from edgeverify.suites.check import verify
from edgeverify_models import CATALOGUE, load
from edgeverify_models.port import build_model


def wrong(audit: AuditResult) -> list[Check]:
    return [check for check in audit.checks if check.outcome == FAIL]


def layer(index: int, name: str) -> str:
    return f"model.layers.{index}.{name}.weight"


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_tensor_of_a_right_port_is_found_once(
    name: str, loaded: Callable[[str], Any]
) -> None:
    made = loaded(name)
    audit = audit_module(made.model, made.state)
    assert audit.outcome == PASS
    items = [check.item for check in audit.checks]
    assert set(items) == set(made.state)
    tied = made.model.config.lm_head_share_weight_with_embedding
    assert len(items) == len(made.state) + (1 if tied else 0)


@pytest.mark.parametrize("name", ["tinyllama", "gemma1"])
def test_shared_storage_is_accepted_without_a_look(name: str, loaded: Callable[[str], Any]) -> None:
    made = loaded(name)
    model = build_model(made.port, made.hf_config, made.state, mask_cache_size=8)
    assert audit_module(model, made.state).outcome == PASS


def test_one_weight_off_by_one_ulp_is_named_with_its_values(loaded: Callable[[str], Any]) -> None:
    made = loaded("tinyllama")
    weight = made.model.transformer_blocks[1].ff.w2.weight
    old = float(weight[3, 7])
    weight[3, 7] = torch.nextafter(weight[3, 7], torch.tensor(torch.inf))
    (check,) = wrong(audit_module(made.model, made.state))
    assert check.item == layer(1, "mlp.down_proj")
    assert check.where == "module, transformer_blocks.1.ff.w2.weight"
    assert check.expected == f"{np.float32(old)!s} at [3, 7]"
    assert check.found == str(np.float32(weight[3, 7]))
    assert check.reason == "1 of 15360 values differ, by 1 ulp"


def test_one_ulp_within_the_fused_projection_is_charged_to_its_part(
    loaded: Callable[[str], Any],
) -> None:
    made = loaded("tinyllama")
    fused = made.model.transformer_blocks[2].atten_func.qkv_projection.weight
    row = 4 * 40 + 2  # the third row of k
    fused[row, 0] = torch.nextafter(fused[row, 0], torch.tensor(0.0))
    (check,) = wrong(audit_module(made.model, made.state))
    assert check.item == layer(2, "self_attn.k_proj")
    assert check.expected.endswith(" at [2, 0]")


def test_minus_zero_is_another_value() -> None:
    found = difference(np.zeros((2, 2), np.float32), np.array([[0, 0], [-0.0, 0]], np.float32))
    assert found == Difference(1, 4, (1, 0), 0.0, -0.0)
    assert difference(np.full(3, np.nan, np.float32), np.full(3, np.nan, np.float32)) is None


def test_k_and_v_exchanged_are_told_apart_though_of_one_shape(
    loaded: Callable[[str], Any],
) -> None:
    made = loaded("smollm2")
    fused = made.model.transformer_blocks[0].atten_func.qkv_projection.weight
    rows = 6 * 48
    k, v = fused[rows : rows + 96].clone(), fused[rows + 96 :].clone()
    fused[rows : rows + 96], fused[rows + 96 :] = v, k
    k_name, v_name = layer(0, "self_attn.k_proj"), layer(0, "self_attn.v_proj")
    found = [(check.expected, check.found) for check in wrong(audit_module(made.model, made.state))]
    assert found == [(k_name, v_name), (v_name, k_name)]


def test_two_layers_of_one_shape_exchanged_are_named(loaded: Callable[[str], Any]) -> None:
    made = loaded("gemma2")
    blocks = made.model.transformer_blocks
    blocks[1].ff.w2, blocks[3].ff.w2 = blocks[3].ff.w2, blocks[1].ff.w2
    found = [(check.expected, check.found) for check in wrong(audit_module(made.model, made.state))]
    first, second = layer(1, "mlp.down_proj"), layer(3, "mlp.down_proj")
    assert found == [(first, second), (second, first)]


def test_gate_and_up_exchanged_are_named(loaded: Callable[[str], Any]) -> None:
    made = loaded("tinyllama")
    inner = made.model.transformer_blocks[0].ff
    inner.w1, inner.w3 = inner.w3, inner.w1
    assert [check.found for check in wrong(audit_module(made.model, made.state))] == [
        layer(0, "mlp.up_proj"),
        layer(0, "mlp.gate_proj"),
    ]


def test_a_transposed_matrix_is_called_that(loaded: Callable[[str], Any]) -> None:
    made = loaded("phi2")
    output = made.model.transformer_blocks[0].atten_func.output_projection
    output.weight = nn.Parameter(output.weight.T.contiguous(), requires_grad=False)
    (check,) = wrong(audit_module(made.model, made.state))
    assert check.found == "its transpose"


def test_a_dropped_tensor_is_named(loaded: Callable[[str], Any]) -> None:
    made = loaded("phi2")
    made.model.transformer_blocks[1].ff.w2.bias = None
    (check,) = wrong(audit_module(made.model, made.state))
    assert check.item == "model.layers.1.mlp.fc2.bias"
    assert check.reason == "is in no parameter"


def test_a_tensor_that_stands_twice_is_named_where_it_does_not_belong(
    loaded: Callable[[str], Any],
) -> None:
    made = loaded("smollm")
    blocks = made.model.transformer_blocks
    blocks[2].ff.w1.weight = blocks[0].ff.w1.weight
    (check,) = wrong(audit_module(made.model, made.state))
    assert (check.expected, check.found) == (layer(2, "mlp.gate_proj"), layer(0, "mlp.gate_proj"))


def test_a_parameter_that_no_tensor_fills_is_named(loaded: Callable[[str], Any]) -> None:
    made = loaded("tinyllama")
    made.model.extra = nn.Linear(3, 4)
    found = wrong(audit_module(made.model, made.state))
    assert [check.item for check in found] == ["extra.weight", "extra.bias"]
    assert {check.reason for check in found} == {"holds no tensor of the checkpoint"}


def test_a_tensor_that_the_port_does_not_know_is_named(loaded: Callable[[str], Any]) -> None:
    made = loaded("tinyllama")
    made.state["model.layers.0.self_attn.sinks"] = torch.ones(4)
    (check,) = wrong(audit_module(made.model, made.state))
    assert check.item == "model.layers.0.self_attn.sinks"


def test_an_untied_head_under_a_tied_one_is_named(loaded: Callable[[str], Any]) -> None:
    made = loaded("smollm")
    made.model.lm_head.weight = nn.Parameter(torch.randn(283, 96), requires_grad=False)
    (check,) = wrong(audit_module(made.model, made.state))
    assert check.where == "module, lm_head.weight"


def test_another_shape_or_dtype_is_told(loaded: Callable[[str], Any]) -> None:
    made = loaded("tinyllama")
    made.model.lm_head.to(torch.bfloat16)
    (check,) = wrong(audit_module(made.model, made.state))
    assert (check.expected, check.found) == ("float32 (331, 96)", "bfloat16 (331, 96)")


def test_parameters_of_other_names_are_found_by_their_bytes(loaded: Callable[[str], Any]) -> None:
    """A block of the user's own: q, k and v apart."""
    made = loaded("tinyllama")
    attention = made.model.transformer_blocks[0].atten_func
    fused = attention.qkv_projection.weight
    for name, rows in (("wq", fused[:160]), ("wk", fused[160:240]), ("wv", fused[240:])):
        linear = nn.Linear(96, len(rows), bias=False)
        linear.weight = nn.Parameter(rows.clone(), requires_grad=False)
        setattr(attention, name, linear)
    del attention.qkv_projection
    audit = audit_module(made.model, made.state)
    assert audit.outcome == PASS
    assert {c.where for c in audit.checks if c.reason.startswith("found by its bytes")} == {
        f"module, transformer_blocks.0.atten_func.{name}.weight" for name in ("wq", "wk", "wv")
    }
    attention.wk.weight[0, 0] += 1
    assert [check.item for check in wrong(audit_module(made.model, made.state))] == [
        layer(0, "self_attn.k_proj"),
        "transformer_blocks.0.atten_func.wk.weight",
    ]


def test_q_k_and_v_are_looked_for_in_the_order_that_the_forward_splits_them() -> None:
    port = load("tinyllama")
    config = port.model_config(port.hf_configs["tiny"])
    names = {part: layer(0, f"self_attn.{part}_proj") for part in "qkv"}
    shapes = {names["q"]: (160, 96), names["k"]: (80, 96), names["v"]: (80, 96)}
    fused = "transformer_blocks.0.atten_func.qkv_projection.weight"
    assert places(shapes, config)[fused] == (
        Span(names["q"], None, (0, 160)),
        Span(names["k"], None, (160, 240)),
        Span(names["v"], None, (240, 320)),
    )
    config.block_configs.attn_config.qkv_transpose_before_split = False
    assert places(shapes, config)[fused] == (
        Span(names["q"], (0, 80), (0, 80)),
        Span(names["k"], (0, 40), (80, 120)),
        Span(names["v"], (0, 40), (120, 160)),
        Span(names["q"], (80, 160), (160, 240)),
        Span(names["k"], (40, 80), (240, 280)),
        Span(names["v"], (40, 80), (280, 320)),
    )


def test_checksums_see_one_ulp_and_an_exchange() -> None:
    tensor = torch.randn(5, 7)
    before = checksums({"x": tensor})
    assert checksums({"x": tensor.clone()}) == before
    nudged, exchanged = tensor.clone(), tensor.clone()
    nudged[4, 6] = torch.nextafter(nudged[4, 6], torch.tensor(0.0))
    exchanged[0, 0], exchanged[0, 1] = tensor[0, 1], tensor[0, 0]
    assert checksums({"x": nudged}) != before
    assert checksums({"x": exchanged}) != before


def test_a_port_that_changes_the_tensors_it_was_given_is_caught_and_does_no_harm() -> None:
    """The reference, built from the same tensors, must not be changed with them."""
    port = load("tinyllama")

    class Careless(port.model_class):  # type: ignore[misc, name-defined]
        def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
            loaded = super().load_state_dict(state, strict=strict, assign=assign)
            table = self.lm_head.weight
            table[0, 0] = torch.nextafter(table[0, 0], torch.tensor(0.0))
            return loaded

    report = verify(replace(port, model_class=Careless), backends=("reference", "reauthored"))
    assert report.legs["authoring"].outcome == PASS  # one ulp is no activation's matter
    assert report.outcome == FAIL
    (finding,) = report.findings
    assert (finding.id, finding.leg) == ("audit.weights", "authoring")
    assert "lm_head.weight" in finding.message
    assert "1 of 31776 values differ, by 1 ulp" in finding.message
    clean = verify(port, backends=("reference", "reauthored"))
    assert clean.outcome == PASS
