"""The audits of one check: what is audited when, and what becomes of what cannot be read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeverify.audits import file_reading
from edgeverify.audits.run import Auditor
from edgeverify.core.case import Case
from edgeverify.core.results import CONFIG, FAIL, PASS, SIGNATURES, UNCHECKED, WEIGHTS, Check
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify_models import load

CASE = Case("tinyllama", "tiny", "default", (4,), 40, ())


def audited(made: Any, **options: Any) -> Auditor:
    auditor = Auditor(made.hf_config, replace(CASE, mask_kinds=made.port.mask_kinds, **options))
    auditor.port(made.model, made.state)
    return auditor


def outcomes(auditor: Auditor) -> dict[str, str]:
    return {name: audit.outcome for name, audit in auditor.results.items()}


def test_a_port_is_held_in_config_and_weights(loaded: Callable[[str], Any]) -> None:
    auditor = audited(loaded("tinyllama"))
    assert outcomes(auditor) == {CONFIG: PASS, WEIGHTS: PASS}
    assert {audit.name for audit in auditor.results.values()} == {CONFIG, WEIGHTS}
    places = {check.where.split(",")[0] for check in auditor.results[CONFIG].checks}
    assert places == {"ModelConfig", "module"}
    assert auditor.failures == []


def test_failures_are_listed_without_what_could_not_be_read(loaded: Callable[[str], Any]) -> None:
    made = loaded("tinyllama")
    made.model.final_norm.eps = 1e-6
    del made.model.transformer_blocks[1].ff.act
    made.model.transformer_blocks[0].ff.w2.weight[0, 0] += 1
    first, second = audited(made).failures
    assert first == "final norm eps (module): expected 0.005, found 1e-06"
    assert second.startswith("model.layers.0.mlp.down_proj.weight (module, transformer_blocks.0.")


def test_a_model_without_a_config_is_unchecked(loaded: Callable[[str], Any]) -> None:
    made = loaded("tinyllama")
    del made.model.config
    results = audited(made).results
    for name, where in ((CONFIG, "HF config or module"), (WEIGHTS, "module")):
        assert results[name].name == name
        (check,) = results[name].checks
        assert (check.item, check.where, check.outcome) == (name, where, UNCHECKED)
        assert check.reason.startswith("cannot be read: AttributeError: ")


def test_a_config_that_makes_no_model_leaves_the_weights_to_be_held(
    loaded: Callable[[str], Any], tmp_path: Path
) -> None:
    made = loaded("tinyllama")
    made.hf_config = {**made.hf_config, "model_type": "nobody's"}
    auditor = audited(made)
    assert outcomes(auditor) == {CONFIG: UNCHECKED, WEIGHTS: PASS}
    auditor.file(tmp_path / "not opened.tflite", made.model, made.state)
    assert auditor.results[SIGNATURES].checks == (
        Check(SIGNATURES, "file", UNCHECKED, reason="the HF config could not be read"),
    )
    assert outcomes(auditor) == {CONFIG: UNCHECKED, WEIGHTS: PASS, SIGNATURES: UNCHECKED}


def test_without_the_audits_of_the_port_a_file_is_unchecked(
    loaded: Callable[[str], Any], tmp_path: Path
) -> None:
    made = loaded("tinyllama")
    auditor = Auditor(made.hf_config, CASE)
    auditor.config_alone(made.model.config)
    auditor.file(tmp_path / "not opened.tflite", made.model, made.state)
    assert outcomes(auditor)[SIGNATURES] == UNCHECKED


def test_a_config_of_which_no_module_could_be_built_is_held_alone(
    loaded: Callable[[str], Any],
) -> None:
    made = loaded("tinyllama")
    auditor = Auditor(made.hf_config, CASE)
    config = copy.copy(made.model.config)
    config.vocab_size = 7
    auditor.config_alone(config)
    assert list(auditor.results) == [CONFIG]
    assert auditor.failures == ["vocabulary (ModelConfig): expected 331, found 7"]
    auditor.config_alone(None)
    assert auditor.results[CONFIG].name == CONFIG
    (check,) = auditor.results[CONFIG].checks
    assert (check.item, check.where, check.outcome) == (CONFIG, "HF config", UNCHECKED)
    assert check.reason.startswith("cannot be read: AttributeError: ")


@pytest.mark.parametrize(("kinds", "wrong"), [(("global",), ["window"]), (("global", "local"), [])])
def test_masks_are_held_where_they_are_inputs(
    kinds: tuple[str, ...], wrong: list[str], loaded: Callable[[str], Any]
) -> None:
    made = loaded("gemma2")
    for given, found in ((True, wrong), (False, [])):
        auditor = Auditor(made.hf_config, replace(CASE, mask_as_input=given, mask_kinds=kinds))
        auditor.port(made.model, made.state)
        checks = auditor.results[CONFIG].checks
        assert [c.item for c in checks if c.outcome == FAIL] == found
        assert any(c.where == "mask inputs" for c in checks) == given


def test_a_window_is_held_as_far_as_the_case_s_cache_reaches(loaded: Callable[[str], Any]) -> None:
    made = loaded("gemma2")
    made.hf_config = {**made.hf_config, "sliding_window": 40}
    for block in range(4):  # the masks hold 13, the configs are made to say 40
        attention = made.model.config.block_config(block).attn_config
        attention.sliding_window_size = 40
    found = {}
    for rows in (40, 41):
        (check,) = (
            c for c in audited(made, kv_cache_len=rows).results[CONFIG].checks if c.outcome == FAIL
        )
        found[rows] = check.expected
    assert found == {40: "none", 41: "40"}


def test_the_family_is_that_of_the_hf_config(loaded: Callable[[str], Any]) -> None:
    """Of a known family, what its config does not say is not done."""
    made = loaded("tinyllama")
    made.model.config.embedding_scale = 12.0
    auditor = audited(made)
    (check,) = auditor.results[CONFIG].odd
    assert (check.item, check.outcome) == ("embedding scale", FAIL)


class Opened:
    """What an ``Auditor`` asks of a file, and a file's worth of wrong answers."""

    signatures = ("decode",)

    def __init__(self, path: Path) -> None:
        self.path = path


@pytest.fixture
def port_done(loaded: Callable[[str], Any]) -> tuple[Auditor, Any]:
    made = loaded("tinyllama")
    return audited(made), made


def test_a_file_that_no_audit_can_read_is_unchecked_in_all_three(
    port_done: tuple[Auditor, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    auditor, made = port_done
    before = {name: audit.checks for name, audit in auditor.results.items()}
    monkeypatch.setattr(file_reading, "ModelFile", Opened)
    auditor.file(tmp_path / "x.tflite", made.model, made.state)
    assert outcomes(auditor) == dict.fromkeys((CONFIG, WEIGHTS, SIGNATURES), UNCHECKED)
    for name in (CONFIG, WEIGHTS):
        assert auditor.results[name].name == name
        *kept, last = auditor.results[name].checks
        assert tuple(kept) == before[name]
        assert (last.item, last.where) == (name, "file")
        assert last.reason.startswith("cannot be read: AttributeError: ")
    (check,) = auditor.results[SIGNATURES].checks
    assert (check.item, check.where) == (SIGNATURES, "file")


@pytest.mark.slow
def test_a_right_file_passes_all_three(converted: Callable[..., Any]) -> None:
    made, state, hf_config = of_converted(converted)
    auditor = Auditor(hf_config, made.case)
    auditor.port(made.model, state)
    of_port = len(auditor.results[WEIGHTS].checks)
    auditor.file(made.path, made.model, state)
    assert outcomes(auditor) == dict.fromkeys((CONFIG, WEIGHTS, SIGNATURES), PASS)
    assert {audit.name for audit in auditor.results.values()} == {CONFIG, WEIGHTS, SIGNATURES}
    places = [check.where.split(",")[0] for check in auditor.results[CONFIG].checks]
    assert set(places) == {"ModelConfig", "module", "file"}
    wheres = [check.where.split(",")[0] for check in auditor.results[WEIGHTS].checks]
    assert wheres[:of_port] == ["module"] * of_port
    assert set(wheres[of_port:]) == {"file"}
    read = {(c.item, c.where): c for c in auditor.results[CONFIG].checks}
    base = read["rotary base", "file"]  # which a fit would give roughly
    assert base.found == base.expected


@pytest.mark.slow
def test_constants_that_cannot_be_held_leave_the_config_s_audit(
    converted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, state, hf_config = of_converted(converted)
    auditor = Auditor(hf_config, made.case)
    auditor.port(made.model, state)

    def broken(*_: Any) -> None:
        raise KeyError("norm")

    monkeypatch.setattr(file_reading, "audit_file", broken)
    auditor.file(made.path, made.model, state)
    assert outcomes(auditor) == {CONFIG: PASS, WEIGHTS: UNCHECKED, SIGNATURES: PASS}
    assert auditor.results[WEIGHTS].odd == (
        Check(WEIGHTS, "file", UNCHECKED, reason="cannot be read: KeyError: 'norm'"),
    )


def of_converted(converted: Callable[..., Any]) -> tuple[Any, dict[str, torch.Tensor], Any]:
    made = converted("tinyllama", "default")
    checkpoint = open_checkpoint(None, load("tinyllama"), size="tiny")
    return made, checkpoint.tensors(), checkpoint.hf_config
