"""Files made elsewhere, against the reference: right ones, wrong ones, and odd ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flatbuffers import flexbuffers

from edgeverify import verify_artifact
from edgeverify.core.errors import ArtifactError, UsageError
from edgeverify.core.results import FAIL, PASS, UNCHECKED, Report
from edgeverify.legs.foreign import tasks
from edgeverify.legs.foreign.ports import port_for
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.litert.flatbuffer.instrument import write
from edgeverify.litert.quantize import quantized
from edgeverify.litert.recipes import load_recipe
from tests.benchmarks.test_damage import bundled
from tests.legs.foreign.edits import (
    cache_writes_hidden,
    copied,
    edited,
    embedder_first,
    names_wiped,
    renamed,
)

pytestmark = pytest.mark.slow
Get = Callable[..., Any]


def outcomes(report: Report) -> dict[str, str]:
    parts = {**report.legs, **report.audits}
    return {name: part.outcome for name, part in parts.items()}


def test_a_right_file_under_another_name_passes(
    converted: Get, checkpoint: Get, tmp_path: Path
) -> None:
    source = converted("tinyllama", "default").path
    elsewhere = tmp_path / "folder" / "somebody's model.tflite"
    elsewhere.parent.mkdir()
    shutil.copyfile(source, elsewhere)
    elsewhere.parent.chmod(0o500)
    report = verify_artifact(elsewhere, checkpoint=checkpoint("tinyllama"), decode_steps=2)
    elsewhere.parent.chmod(0o700)
    assert outcomes(report) == dict.fromkeys(
        ("conversion", "config", "weights", "signatures", "edges"), PASS
    )
    assert report.case["file"] == str(elsewhere)
    assert report.case["prefill_lengths"] == (4, 11)
    assert {tap.outcome for tap in report.legs["conversion"].taps} == {PASS}
    assert "prefill.0/blocks.1.attn.q" in {tap.tap for tap in report.legs["conversion"].taps}
    assert list(elsewhere.parent.iterdir()) == [elsewhere]


def test_a_transposed_bundle_with_masks_as_inputs_passes(
    converted: Get, checkpoint: Get, tmp_path: Path
) -> None:
    made = converted("gemma2", "transposed", mask_as_input=True)
    bundle = bundled(made.path, tmp_path)
    report = verify_artifact(bundle, checkpoint=checkpoint("gemma2"), decode_steps=2)
    # Neither the container nor the checkpoint says how the model is used.
    told = outcomes(report)
    assert told.pop("bundle") == UNCHECKED
    assert set(told.values()) == {PASS}, report.findings
    assert report.case["kv_layout"] == "transposed"
    assert report.case["mask_as_input"]
    assert report.case["container"]["tokenizer"] is None
    assert report.case["model"] == "gemma2"


def test_names_are_not_needed(converted: Get, checkpoint: Get, tmp_path: Path) -> None:
    source = converted("tinyllama", "transposed", prefill_logits=False).path
    path = edited(source, tmp_path / "x.tflite", names_wiped, renamed(prefill_11="prefill"))
    report = verify_artifact(path, checkpoint=checkpoint("tinyllama"), decode_steps=2)
    assert set(outcomes(report).values()) <= {PASS, UNCHECKED}
    assert report.audits["weights"].outcome == PASS
    unread = {t.tap for t in report.legs["conversion"].taps if t.outcome == UNCHECKED}
    assert all(tap.startswith("prefill.") for tap in unread), "a silent prefill computes less"


def test_another_checkpoint_of_the_same_shape_is_caught(converted: Get, checkpoint: Get) -> None:
    source = converted("tinyllama", "default").path
    report = verify_artifact(source, checkpoint=checkpoint("tinyllama", seed=1), decode_steps=2)
    assert outcomes(report) == {
        "conversion": FAIL,
        "config": PASS,
        "weights": FAIL,
        "signatures": PASS,
        "edges": UNCHECKED,
    }
    failed = {tap.tap for tap in report.legs["conversion"].taps if tap.outcome == FAIL}
    assert {"prefill.0/embed", "prefill.0/logits", "decode.1/logits"} <= failed
    divergence = report.legs["conversion"].first_divergence
    assert divergence is not None
    assert divergence.tap == "prefill.0/embed"
    assert "model.layers.0.mlp.up_proj.weight" in {c.item for c in report.audits["weights"].odd}


def test_a_file_of_another_model_is_judged_though_it_cannot_be_run(
    converted: Get, checkpoint: Get
) -> None:
    """Its vocabulary is smaller than that of the reference, whose tokens it is fed."""
    source = converted("gemma2", "default").path
    report = verify_artifact(source, checkpoint=checkpoint("tinyllama"), decode_steps=2)
    assert report.outcome == FAIL
    assert report.legs["conversion"].outcome == UNCHECKED
    assert "index out of bounds" in report.legs["conversion"].reason
    assert str(source) in report.legs["conversion"].reason
    assert "vocabulary" in {check.item for check in report.audits["config"].odd}


def test_without_a_known_cache_write_logits_and_caches_are_judged(
    converted: Get, checkpoint: Get, tmp_path: Path
) -> None:
    source = converted("smollm", "default").path
    path = edited(source, tmp_path / "x.tflite", cache_writes_hidden)
    report = verify_artifact(path, checkpoint=checkpoint("smollm"), decode_steps=2)
    assert report.outcome == UNCHECKED
    judged = {t.tap.partition("/")[2] for t in report.legs["conversion"].taps if t.outcome == PASS}
    assert "logits" in judged
    assert all(tap == "logits" or tap.startswith("kv.") for tap in judged)
    unread = [t for t in report.legs["conversion"].taps if t.outcome == UNCHECKED]
    assert {tap.reason for tap in unread} == {tasks.NOT_LOCATED}
    assert report.audits["weights"].outcome == UNCHECKED
    wrong = verify_artifact(path, checkpoint=checkpoint("smollm", seed=1), decode_steps=2)
    assert wrong.legs["conversion"].outcome == FAIL


def test_what_is_not_run_is_unchecked(converted: Get, checkpoint: Get, tmp_path: Path) -> None:
    source = converted("tinyllama", "default").path
    path = edited(source, tmp_path / "x.tflite", copied("prefill_4", "verify"))
    report = verify_artifact(path, checkpoint=checkpoint("tinyllama"), decode_steps=2)
    assert report.legs["conversion"].outcome == PASS
    odd = [str(check) for check in report.audits["signatures"].odd]
    assert len(odd) == 1
    assert "verify" in odd[0]
    assert "it is not run: it is neither prefill, prefill_N nor decode" in odd[0]
    assert report.outcome == UNCHECKED


def test_a_first_signature_without_caches_leaves_the_verdict(
    converted: Get, checkpoint: Get, tmp_path: Path
) -> None:
    """The number of blocks is that of the signatures that are run."""
    source = converted("tinyllama", "default").path
    path = edited(source, tmp_path / "x.tflite", embedder_first)
    report = verify_artifact(path, checkpoint=checkpoint("tinyllama"), decode_steps=2)
    assert report.legs["conversion"].outcome == PASS
    assert {tap.outcome for tap in report.legs["conversion"].taps} == {PASS}


def test_a_decode_of_several_conversations_is_unchecked(converted: Get, checkpoint: Get) -> None:
    source = converted("tinyllama", "default", decode_batch=2).path
    report = verify_artifact(source, checkpoint=checkpoint("tinyllama"), decode_steps=2)
    assert outcomes(report) == {
        "conversion": PASS,
        "config": PASS,
        "weights": PASS,
        "signatures": UNCHECKED,
        "edges": PASS,
    }
    assert {tap.tap.split(".")[0] for tap in report.legs["conversion"].taps} == {"prefill"}
    odd = [str(check) for check in report.audits["signatures"].odd]
    assert odd == ["decode (file): it is not run: it takes 2 conversations at once"]


def test_a_signature_that_the_cache_has_no_room_for_is_unchecked(
    converted: Get, checkpoint: Get
) -> None:
    source = converted("tinyllama", "default").path
    report = verify_artifact(source, checkpoint=checkpoint("tinyllama"), decode_steps=34)
    assert report.legs["conversion"].outcome == PASS
    odd = [str(check) for check in report.audits["signatures"].odd]
    assert odd == ["prefill_11 (file): it is not run: its cache of 40 rows has no room for it"]
    assert report.outcome == UNCHECKED


@pytest.mark.parametrize("recipe", ["dynamic_int8", "fp16"])
def test_a_quantized_file_is_judged_with_the_weights_it_holds(
    converted: Get, checkpoint: Get, recipe: str
) -> None:
    path = quantized(converted("tinyllama", "default").path, load_recipe(recipe))
    report = verify_artifact(path, checkpoint=checkpoint("tinyllama"), decode_steps=2)
    assert list(report.legs) == ["quantization"]
    assert report.passed
    wrong = verify_artifact(path, checkpoint=checkpoint("tinyllama", seed=1), decode_steps=2)
    assert wrong.audits["weights"].outcome == FAIL
    assert wrong.legs["quantization"].outcome == PASS, "it computes rightly with other weights"
    (finding,) = (f for f in wrong.findings if f.id == "audit.weights")
    assert "half a step" in finding.message or "not the nearest float16" in finding.message \
        or "not their weights'" in finding.message  # fmt: skip


def test_a_file_is_held_to_the_recipe_that_is_named(converted: Get, checkpoint: Get) -> None:
    path = quantized(converted("tinyllama", "default").path, load_recipe("dynamic_int8"))
    arguments = {"checkpoint": checkpoint("tinyllama"), "decode_steps": 2}
    assert verify_artifact(path, recipe="dynamic_int8", **arguments).passed
    wrong = verify_artifact(path, recipe="dynamic_int4_block32", **arguments)
    told = str(wrong.audits["weights"].odd[0])
    assert "expected int4 in blocks of 32, found int8 by channel" in told
    with pytest.raises(UsageError, match="there is no 'int9'"):
        verify_artifact(path, recipe="int9", **arguments)


def test_a_rule_that_changes_nothing_in_the_file_is_told(
    converted: Get, checkpoint: Get, tmp_path: Path
) -> None:
    path = quantized(converted("tinyllama", "default").path, load_recipe("dynamic_int8"))
    no = {"regex": "TransformerBlock_9/", "operation": "*", "algorithm_key": "no_quantize"}
    recipe = tmp_path / "mine.json"
    recipe.write_text(json.dumps([*load_recipe("dynamic_int8").rules, no]))
    arguments = {"checkpoint": checkpoint("tinyllama"), "decode_steps": 2}
    report = verify_artifact(path, recipe=str(recipe), **arguments)
    assert outcomes(report)["quantization"] == PASS
    (check,) = report.audits["weights"].odd
    assert str(check) == (
        "rule 2, 'TransformerBlock_9/' (recipe): its regular expression fits the name of no "
        "operator, so it changes nothing"
    )


def test_what_a_norm_of_a_prefill_says_is_held_against_the_config(
    converted: Get, checkpoint: Get, tmp_path: Path
) -> None:
    """LiteRT's CPU kernels compute its body, and do not read its epsilon."""
    file = ModelFile(converted("tinyllama", "default").path)
    norm = [op for op in file.graph("prefill_4").ops if op.name == "odml.rms_norm"][-1]
    stated = file.graph("prefill_4").raw.operators[norm.index].builtinOptions2
    stated.compositeAttributes = np.frombuffer(flexbuffers.Dumps({"epsilon": 0.5}), np.uint8)
    write(file, tmp_path / "x.tflite")
    arguments = {"checkpoint": checkpoint("tinyllama"), "decode_steps": 2}
    report = verify_artifact(tmp_path / "x.tflite", **arguments)
    assert outcomes(report)["conversion"] == PASS
    (check,) = report.audits["config"].odd
    assert (check.item, check.where, check.found) == (
        "final norm eps", "file, prefill_4", "0.5"
    )  # fmt: skip


def test_a_hang_of_the_file_is_an_error(converted: Get, checkpoint: Get) -> None:
    source = converted("tinyllama", "default").path
    with pytest.raises(ArtifactError, match=r"did not finish within 0\.01 s"):
        verify_artifact(source, checkpoint=checkpoint("tinyllama"), seconds=0.01)


def test_a_renamed_signature_is_told(converted: Get, checkpoint: Get, tmp_path: Path) -> None:
    source = converted("tinyllama", "default").path
    path = edited(source, tmp_path / "x.tflite", renamed(decode="generate"))
    with pytest.raises(ArtifactError, match="generate is neither prefill, prefill_N nor decode"):
        verify_artifact(path, checkpoint=checkpoint("tinyllama"))


def test_the_port_is_found_by_the_config(checkpoint: Get, tmp_path: Path) -> None:
    for name in ("gemma1", "gemma2", "tinyllama", "phi2", "openelm", "smollm"):
        assert port_for(str(checkpoint(name))).name == name
    assert port_for("google/gemma-2-2b").name == "gemma2"
    with pytest.raises(UsageError, match=r"has no config.json .*; name the port by --model"):
        port_for(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UsageError, match=r"model_type 'mamba'; expected one of gemma, gemma2, ll"):
        port_for(str(tmp_path))
    with pytest.raises(UsageError, match="is neither a path nor a hub id"):
        port_for("somebody/something")


def test_one_file_has_one_recipe() -> None:
    with pytest.raises(UsageError, match="one file is made by one recipe"):
        verify_artifact("any.tflite", checkpoint="anywhere", recipe="all")
