"""Several faulty sublayers of one block are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edgeverify_models as models
from edgeverify.core.localise import forget_unfed, inputs_of
from edgeverify.core.results import FAIL
from edgeverify.core.trace import Trace
from edgeverify.legs import line
from edgeverify.legs.conversion import converted
from edgeverify.suites.check import verify
from edgeverify_models.port import Port
from tests import variants
from tests.suites.selftest.test_faults import AUTHORING, changed_constant, seen


def several_faults_in_block_1() -> Port:
    """The queries' rows scaled, V's bias off, and the feed-forward's gate taken for its up."""

    def change(model: nn.Module) -> None:
        block = model.transformer_blocks[1]
        attention, feed_forward = block.atten_func, block.ff
        width = attention.config.num_heads * attention.config.head_dim
        project = attention.qkv_projection.forward

        def projected(x: torch.Tensor) -> torch.Tensor:
            out = project(x).clone()
            out[..., :width] *= 1.001
            out[..., -1] += 0.01
            return out

        attention.qkv_projection.forward = projected
        gate, up = feed_forward.w1, feed_forward.w3

        def forward(x: torch.Tensor) -> torch.Tensor:
            x = feed_forward.pre_ff_norm(x)
            return feed_forward.post_ff_norm(feed_forward.w2(feed_forward.act(up(x)) * gate(x)))

        feed_forward.forward = forward

    return variants.with_model(models.load("tinyllama"), change)


@pytest.mark.parametrize("layout", ["default", "transposed"])
def test_three_faults_of_one_block_are_told_apart(layout: str) -> None:
    report = verify(several_faults_in_block_1(), backends=AUTHORING, kv_layout=layout)
    _, isolated = seen(report.legs["authoring"])
    assert isolated == ("blocks.1.attn.q", "blocks.1.attn.v", "blocks.1.ff.out")


def test_a_cache_that_is_written_wrongly_is_named_and_attention_is_not() -> None:
    report = verify(variants.kv_row_off_by_one_in_decode(), backends=AUTHORING)
    _, isolated = seen(report.legs["authoring"])
    assert isolated == tuple(f"kv.{i}.{which}" for i in range(3) for which in "kv")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["default", "transposed"])
def test_two_faults_of_one_block_of_a_file_are_told_apart(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = converted

    def broken(run: Any) -> Path:
        first, second = tmp_path / "one.tflite", tmp_path / "two.tflite"
        changed_constant(right(run), first, "blocks.2.attn.out", 1.5)
        changed_constant(first, second, "blocks.2.ff.out", 1.5)
        return second

    monkeypatch.setattr(line, "converted", broken)
    leg = verify("tinyllama", kv_layout=layout).legs["conversion"]
    assert leg.outcome == FAIL
    assert seen(leg)[1] == ("blocks.2.attn.out", "blocks.2.ff.out")


def test_what_a_tap_is_computed_from() -> None:
    assert inputs_of("embed", 2) == ()
    assert inputs_of("blocks.0.attn.k", 2) == ("embed", "blocks.0.attn_norm")
    assert inputs_of("blocks.1.out", 2) == ("blocks.0.out", "blocks.1.attn.out", "blocks.1.ff.out")
    assert inputs_of("logits", 2) == ("blocks.1.out", "final_norm")
    assert inputs_of("kv.1.v", 2) == ("blocks.1.attn.v",)


def test_a_tap_whose_inputs_could_not_be_fed_is_taken_back() -> None:
    one = torch.ones(1, 1, 2).numpy()
    trace = Trace()
    for tap in ("blocks.0.attn.q", "blocks.0.ff.out"):
        trace.add("decode.0", tap, one)
    forget_unfed(trace, "decode.0", 1, {"embed", "blocks.0.attn_norm"})
    assert list(trace) == ["decode.0/blocks.0.attn.q"]
    assert trace.unavailable == {
        "decode.0/blocks.0.ff.out": "not possible: blocks.0.ff_norm could not be fed"
    }
