"""The faults that a check must find, where it must see them first, and whom it must blame."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeverify_models as models
from edgeverify.cli.main import main
from edgeverify.core.errors import PortError
from edgeverify.core.results import FAIL, PASS, UNCHECKED, LegResult
from edgeverify.legs import line
from edgeverify.legs.conversion import converted
from edgeverify.litert.flatbuffer import ModelFile, locate_taps
from edgeverify.suites.check import verify
from tests import variants

AUTHORING = ("reference", "reauthored")

# fault → the tap of the first divergence, without its step, the parts that are named alone, and
# what the audit of the config names, if it can see the fault, and the kind of each cause
FAULTS = {
    "norm_eps_one_percent_off": (
        "blocks.0.attn_norm",
        # Gemma 2 norms what leaves attention and feed-forward, too; its ratio is seen in "ff_norm",
        # which is made of two norms, and in "out".
        (
            *(f"blocks.{i}.{tap}" for i in range(4) for tap in ("attn_norm", "ff_norm", "out")),
            "final_norm",
        ),
        "final norm eps (ModelConfig): expected 0.004, found 0.00404;",
        ["norm.eps"],
    ),
    "embedding_scale_in_bfloat16": (
        "embed",
        ("embed",),
        "embedding scale (ModelConfig): expected 9.797958971132712, found 9.8125",
        ["embedding.scale"],
    ),
    "query_scale_off": (
        "blocks.0.attn.out",
        tuple(f"blocks.{i}.attn.out" for i in range(4)),
        "query scale (ModelConfig): expected 0.20851441405707477, found 0.2087229284711318",
        ["attention.scale"],
    ),
    "rms_eps_1_1e_5": (
        "blocks.0.attn_norm",
        (
            *(f"blocks.{i}.{tap}" for i in range(3) for tap in ("attn_norm", "ff_norm")),
            "final_norm",
        ),
        "final norm eps (ModelConfig): expected 1e-05, found 1.1e-05;",
        ["norm.eps"],
    ),
    # Its weights and config are right; what it does with them is not.
    "gate_and_up_swapped_in_block_1": (
        "blocks.1.ff.out",
        ("blocks.1.ff.out",),
        "",
        ["ff.gate"],
    ),
    "rope_base_off": (
        "blocks.0.attn.q",
        tuple(f"blocks.{i}.attn.{x}" for i in range(3) for x in "qk"),
        "rotary base (ModelConfig): expected 5300.0, found 10000.0",
        ["rope.base"],
    ),
    "fourth_layer_masked_wrongly": (
        "blocks.3.attn.out",
        ("blocks.3.attn.out",),
        "window (ModelConfig, block 3): expected none, found 13;",
        ["attention.window"],
    ),
}


def seen(leg: LegResult) -> tuple[str, tuple[str, ...]]:
    assert leg.first_divergence is not None
    return leg.first_divergence.tap.split("/")[1], leg.first_divergence.isolated


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_port_is_found_and_placed(fault: str) -> None:
    report = verify(getattr(variants, fault)(), backends=AUTHORING)
    leg = report.legs["authoring"]
    assert leg.outcome == FAIL
    tap, isolated, audited, causes = FAULTS[fault]
    assert seen(leg) == (tap, isolated)
    audits = [finding for finding in report.findings if finding.id.startswith("audit.")]
    divergence, *others = report.findings[len(audits) :]
    assert divergence.id == "authoring.divergence"
    assert [finding.id for finding in audits] == (["audit.config"] if audited else [])
    assert all(finding.message.startswith(audited) for finding in audits)
    assert report.audits["weights"].outcome == PASS
    assert [finding.id for finding in others] == ["authoring.cause"] * len(causes)
    assert [finding.cause for finding in others] == causes


@pytest.mark.parametrize("fault", ["gate_and_up_swapped_in_block_1"])
def test_check_exits_with_1_and_names_tap_and_block(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = tmp_path / "port.py"
    port.write_text(f"from tests.variants import {fault}\nPORT = {fault}()\n")
    status = main(["check", f"{port}:PORT", "--backend", "reauthored"])
    out = capsys.readouterr().out
    assert status == 1
    assert out.startswith("FAIL")
    assert "prefill.0/blocks.1.ff.out" in out


@pytest.mark.slow
def test_the_converter_is_not_blamed_for_the_port() -> None:
    report = verify(variants.gate_and_up_swapped_in_block_1())
    assert {name: leg.outcome for name, leg in report.legs.items()} == {
        "authoring": FAIL,
        "conversion": PASS,
    }
    assert report.legs["conversion"].notes == (
        "judged against the re-authored model's own float64 run",
    )
    # The module holds both where they belong; the file shows which of them it takes for the gate.
    (audited,) = [finding for finding in report.findings if finding.id.startswith("audit.")]
    assert (audited.id, audited.leg) == ("audit.weights", "authoring")
    gate, up = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up"))
    assert f"expected {gate}, found {up}; " in audited.message


def changed_constant(source: Path, target: Path, tap: str, factor: float) -> None:
    """Copies a file; in it, one weight of the projection that makes ``tap`` is scaled."""
    file = ModelFile(source)
    graph = file.graph("decode")
    op = graph.producer[locate_taps(file, "decode").taps[tap].tensor]
    weight = next(tensor for tensor in op.inputs if graph.is_constant(tensor))
    span = file.buffer_span(graph.raw.tensors[weight].buffer)
    assert span is not None
    shutil.copyfile(source, target)
    values = np.memmap(target, np.float32, "r+", offset=span[0], shape=(span[1] // 4,))
    values[7] *= factor
    values.flush()


@pytest.mark.slow
@pytest.mark.parametrize("port_fails", [False, True])
def test_a_fault_of_the_file_is_charged_to_the_conversion(
    port_fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the port is wrong in another place."""
    right = converted

    def broken(run: Any) -> Path:
        target = tmp_path / "broken.tflite"
        changed_constant(right(run), target, "blocks.2.attn.out", 1.01)
        return target

    monkeypatch.setattr(line, "converted", broken)
    port = variants.gate_and_up_swapped_in_block_1() if port_fails else models.load("tinyllama")
    report = verify(port)
    assert report.legs["authoring"].outcome == (FAIL if port_fails else PASS)
    assert report.legs["conversion"].outcome == FAIL
    # A file that fails against the reference gets no second, more lenient, judge.
    assert bool(report.legs["conversion"].notes) == port_fails
    assert seen(report.legs["conversion"]) == ("blocks.2.attn.out", ("blocks.2.attn.out",))
    (audited,) = [finding for finding in report.findings if finding.id.startswith("audit.")]
    assert (audited.id, audited.leg) == ("audit.weights", "conversion")
    assert "model.layers.2.self_attn.o_proj.weight (file, " in audited.message
    assert audited.message.endswith("1 of 15360 values differ, by 92882 ulps")


@pytest.mark.slow
def test_an_authoring_verdict_survives_a_conversion_that_cannot_be_judged() -> None:
    report = verify(variants.logits_of_the_last_position_only())
    authoring, conversion = report.legs["authoring"], report.legs["conversion"]
    assert seen(authoring) == ("logits", ("logits",))
    assert conversion.outcome == UNCHECKED
    assert conversion.reason.startswith("not possible with this port: ")
    assert report.outcome == FAIL


def test_a_cache_row_that_is_written_wrongly_is_told_from_attention() -> None:
    report = verify(variants.kv_row_off_by_one_in_decode(), backends=AUTHORING)
    divergence, cause = report.findings
    assert divergence.tap == "decode.0/blocks.0.attn.out"
    assert "how the cache of block 0 is written" in divergence.message
    assert cause.message.startswith(
        "blocks.*.attn.out, kv.*.k, kv.*.v: rows are written -1 from their place in the cache in "
        "decode steps → in place restores parity"
    )


def test_a_right_port_whose_parts_cannot_be_fed_is_unchecked_and_no_failure() -> None:
    leg = verify(variants.final_norm_past_its_hooks(), backends=AUTHORING).legs["authoring"]
    assert leg.outcome == UNCHECKED
    odd = {tap.tap.split("/")[1] for tap in leg.taps if tap.outcome != PASS}
    assert odd == {"final_norm", "logits"}
    assert "could not be run alone on the oracle's input" in leg.reason


def test_a_port_that_cannot_be_loaded_is_told_what_the_audit_sees() -> None:
    port = variants.with_config(models.load("tinyllama"), num_attention_heads=6)
    with pytest.raises(PortError) as raised:
        verify(port, backends=AUTHORING)
    assert "qkv_projection.weight' is (320, 96) in the checkpoint" in str(raised.value)
    assert str(raised.value).endswith("the audits found heads (ModelConfig): expected 4, found 6")


@pytest.mark.slow
def test_a_search_for_the_operator_that_raises_leaves_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = converted

    def changed(run: Any) -> Path:
        target = tmp_path / "broken.tflite"
        changed_constant(right(run), target, "blocks.2.attn.out", 1.01)
        return target

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(line, "converted", changed)
    monkeypatch.setattr("edgeverify.legs.conversion.op_findings", broken)
    report = verify("tinyllama")
    assert report.legs["conversion"].outcome == FAIL
    told = [
        finding.message for finding in report.findings if finding.id.startswith("conversion.op")
    ]
    assert told == ["the operator was not found: RuntimeError: broken"]
