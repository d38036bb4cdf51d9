"""The converted file: its constants, shapes and attributes, each changed and each named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeverify.audits.config import audit_config
from edgeverify.audits.file_weights import audit_file
from edgeverify.audits.of_file import of_file
from edgeverify.audits.of_hf_config import declared
from edgeverify.core.results import FAIL, PASS, UNCHECKED, AuditResult, Check
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.litert.flatbuffer import ModelFile, locate_taps
from edgeverify.litert.flatbuffer.instrument import write
from edgeverify.litert.flatbuffer.weights import find_weights
from edgeverify_models import load

pytestmark = pytest.mark.slow
TURNS = {"default": "gemma2", "transposed": "tinyllama"}


class Opened:
    """A converted tiny port: its file, with what the audits compare it with."""

    def __init__(self, made: Any, path: Path | None = None) -> None:
        self.made = made
        self.path = path or made.path
        self.file = ModelFile(self.path)
        port = load(made.case.model)
        checkpoint = open_checkpoint(None, port, size="tiny")
        self.hf_config: Mapping[str, Any] = checkpoint.hf_config
        self.state = checkpoint.tensors()

    def weights(self) -> AuditResult:
        found = {
            name: find_weights(self.file, name, locate_taps(self.file, name))
            for name in self.file.signatures
        }
        config = self.made.model.config
        return audit_file(self.file, found, config, self.state, declared(self.hf_config))

    def config(self, **changes: Any) -> AuditResult:
        """Against a config with ``changes``: to the audit, the file is then wrong in them."""
        said = declared({**self.hf_config, **changes})
        weights = find_weights(self.file, "decode", locate_taps(self.file, "decode"))
        read = of_file(self.file, weights, said.values["rotary base"])
        rows = self.made.case.kv_cache_len
        audit = audit_config(said, [read], rows=rows)
        return replace(audit, checks=tuple(c for c in audit.checks if c.where))

    def span(self, name: str) -> tuple[int, int]:
        """First byte and elements of the constant that is a parameter."""
        weights = find_weights(self.file, "decode", locate_taps(self.file, "decode"))
        span = self.file.buffer_span(weights.graph.raw.tensors[weights.tensors[name]].buffer)
        assert span is not None
        return span[0], span[1] // 4

    def changed(
        self, target: Path, change: Callable[[Callable[[str], np.ndarray]], None]
    ) -> Opened:
        """A copy in which ``change`` has written into constants, taken by parameter."""
        shutil.copyfile(self.path, target)
        held: list[np.memmap] = []

        def values(name: str) -> np.ndarray:
            start, count = self.span(name)
            held.append(np.memmap(target, np.float32, "r+", offset=start, shape=(count,)))
            return held[-1]

        change(values)
        for array in held:
            array.flush()
        return Opened(self.made, target)


def wrong(audit: AuditResult) -> list[Check]:
    return [check for check in audit.checks if check.outcome == FAIL]


@pytest.mark.parametrize(("layout", "name"), TURNS.items())
def test_every_constant_is_a_weight_or_explained(
    layout: str, name: str, converted: Callable[..., Any]
) -> None:
    opened = Opened(converted(name, layout))
    audit = opened.weights()
    assert audit.outcome == PASS
    assert {check.item for check in audit.checks} == set(opened.state)
    masks = 2 if name == "gemma2" else 1
    assert f"{masks} of masks" in audit.notes[0]
    assert "1 of RoPE" in audit.notes[0]
    assert opened.config().odd == ()


@pytest.mark.parametrize(
    ("layout", "name", "parameter", "tensor"),
    [
        ("default", "gemma2", "transformer_blocks.2.ff.w3.weight",
         "model.layers.2.mlp.up_proj.weight"),
        ("default", "gemma2", "lm_head.weight", "model.embed_tokens.weight"),
        ("default", "gemma2", "transformer_blocks.1.ff.pre_ff_norm.weight",
         "model.layers.1.pre_feedforward_layernorm.weight"),
        ("transposed", "tinyllama", "transformer_blocks.0.atten_func.qkv_projection.weight",
         "model.layers.0.self_attn.q_proj.weight"),
        ("transposed", "tinyllama", "tok_embedding.weight", "model.embed_tokens.weight"),
    ],
)  # fmt: skip
def test_one_constant_off_by_one_ulp_is_named(
    layout: str,
    name: str,
    parameter: str,
    tensor: str,
    converted: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Also where the file holds the weight plus one, or divided by the softcap."""

    def nudge(values: Callable[[str], np.ndarray]) -> None:
        array = values(parameter)
        array[5] = np.nextafter(array[5], np.float32(np.inf))

    opened = Opened(converted(name, layout)).changed(tmp_path / "x.tflite", nudge)
    (check,) = wrong(opened.weights())
    assert check.item == tensor
    assert check.where == f"file, {parameter}"
    assert check.reason.endswith("values differ, by 1 ulp")
    assert check.expected.endswith(("at [5]", "at [0, 5]"))


def test_constants_of_two_layers_exchanged_are_named(
    converted: Callable[..., Any], tmp_path: Path
) -> None:
    def exchange(values: Callable[[str], np.ndarray]) -> None:
        first, third = (values(f"transformer_blocks.{i}.ff.w2.weight") for i in (0, 2))
        first[:], third[:] = third.copy(), first.copy()

    opened = Opened(converted("tinyllama", "transposed")).changed(tmp_path / "x.tflite", exchange)
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 2)]
    assert [(c.expected, c.found) for c in wrong(opened.weights())] == [
        tuple(names),
        tuple(names[::-1]),
    ]


def test_k_and_v_exchanged_in_the_file_are_told_apart(
    converted: Callable[..., Any], tmp_path: Path
) -> None:
    def exchange(values: Callable[[str], np.ndarray]) -> None:
        rows = values("transformer_blocks.1.atten_func.qkv_projection.weight").reshape(-1, 96)
        rows[160:240], rows[240:] = rows[240:].copy(), rows[160:240].copy()

    opened = Opened(converted("tinyllama", "transposed")).changed(tmp_path / "x.tflite", exchange)
    assert [check.item for check in wrong(opened.weights())] == [
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.1.self_attn.v_proj.weight",
    ]


def test_a_norm_without_its_one_is_a_fault(converted: Callable[..., Any], tmp_path: Path) -> None:
    def without(values: Callable[[str], np.ndarray]) -> None:
        values("final_norm.weight")[:] -= 1

    opened = Opened(converted("gemma2", "default")).changed(tmp_path / "x.tflite", without)
    assert [check.item for check in wrong(opened.weights())] == ["model.norm.weight"]


def test_a_tensor_that_the_file_lacks_is_named(converted: Callable[..., Any]) -> None:
    opened = Opened(converted("tinyllama", "transposed"))
    opened.state["model.layers.1.mlp.down_proj.bias"] = opened.state["model.norm.weight"]
    (check,) = wrong(opened.weights())
    assert check.item == "model.layers.1.mlp.down_proj.bias"
    assert check.reason == "has no constant"


def test_a_constant_that_the_checkpoint_lacks_is_named(converted: Callable[..., Any]) -> None:
    opened = Opened(converted("tinyllama", "transposed"))
    del opened.state["model.layers.1.mlp.down_proj.weight"]
    (check,) = wrong(opened.weights())
    assert check.item == "transformer_blocks.1.ff.w2.weight"
    assert check.reason == "belongs to no tensor of the checkpoint"


def test_a_table_of_nobody_s_is_unchecked(converted: Callable[..., Any], tmp_path: Path) -> None:
    """The RoPE table is told by its content; with another it is a leftover."""
    opened = Opened(converted("tinyllama", "transposed"))
    weights = find_weights(opened.file, "decode", locate_taps(opened.file, "decode"))
    table = next(t for t in weights.unknown if weights.graph.shape(t) == (1, 1, 20))
    span = opened.file.buffer_span(weights.graph.raw.tensors[table].buffer)
    assert span is not None
    target = tmp_path / "x.tflite"
    shutil.copyfile(opened.path, target)
    held = np.memmap(target, np.float32, "r+", offset=span[0], shape=(20,))
    held[3] = 4.0
    held.flush()
    audit = Opened(opened.made, target).weights()
    (check,) = audit.odd
    assert check.outcome == UNCHECKED
    assert check.reason.startswith("belongs to no tensor of the checkpoint; a MUL takes it")


# What the HF config would have to say for the file to be wrong → the fields that are named.
CONFIGS = {
    "gemma2 default": {
        "rms_norm_eps": (4.001e-3, {"final norm eps", *(f"{norm} eps" for norm in (
            "attention norm", "attention output norm", "feed-forward norm",
            "feed-forward output norm"))}),
        "attn_logit_softcapping": (2.31, {"attention softcap"}),
        "final_logit_softcapping": (1.71, {"final softcap"}),
        "query_pre_attn_scalar": (24, {"query scale"}),
        "sliding_window": (14, {"window"}),
        "layer_types": (["full_attention", "sliding_attention"] * 2, {"window"}),
        "rope_theta": (6101.0, {"rotary base"}),
        "num_key_value_heads": (4, {"key/value heads"}),
        "head_dim": (20, {"head_dim", "heads", "key/value heads", "rotary elements",
                          "rotary base"}),
        "intermediate_size": (96, {"feed-forward width"}),
        "vocab_size": (308, {"vocabulary"}),
        "num_hidden_layers": (5, {"layers"}),
        "attention_bias": (True, {"qkv bias", "attention output bias"}),
    },
    "tinyllama transposed": {
        "rms_norm_eps": (5.001e-3, {"final norm eps", "attention norm eps",
                                    "feed-forward norm eps"}),
        "num_key_value_heads": (4, {"key/value heads"}),
        "hidden_size": (100, {"width"}),
        "mlp_bias": (True, {"feed-forward bias"}),
    },
}  # fmt: skip
CASES = [(made, key) for made, changes in CONFIGS.items() for key in changes]


@pytest.mark.parametrize(("made", "key"), CASES)
def test_a_file_that_is_wrong_in_one_field_is_named(
    made: str, key: str, converted: Callable[..., Any]
) -> None:
    name, layout = made.split()
    value, fields = CONFIGS[made][key]
    opened = Opened(converted(name, layout))
    if key == "num_hidden_layers":  # gemma2's kinds of layers are as many
        opened.hf_config = {**opened.hf_config, "layer_types": None}
    found = {check.item for check in wrong(opened.config(**{key: value}))}
    if key == "head_dim":  # which also changes what the query's scale would be elsewhere
        assert found <= fields
        assert "head_dim" in found
    else:
        assert found == fields


def test_a_mask_that_lost_its_window_is_seen_in_the_file(
    converted: Callable[..., Any], tmp_path: Path
) -> None:
    opened = Opened(converted("gemma2", "default"))
    weights = find_weights(opened.file, "decode", locate_taps(opened.file, "decode"))
    rows = opened.made.case.kv_cache_len
    tables = [t for t in weights.unknown if weights.graph.shape(t) == (rows, 1, 1, rows)]
    target = tmp_path / "x.tflite"
    shutil.copyfile(opened.path, target)
    for table in tables:
        span = opened.file.buffer_span(weights.graph.raw.tensors[table].buffer)
        assert span is not None
        held = np.memmap(target, np.float32, "r+", offset=span[0], shape=(rows, rows))
        held[np.tril_indices(rows)] = 0.0
        held.flush()
    (check,) = wrong(Opened(opened.made, target).config())
    assert (check.item, check.where) == ("window", "file, blocks 0, 2")
    assert (check.expected, check.found) == ("13", "none")


def test_files_with_buffers_outside_the_table_are_read_too(
    converted: Callable[..., Any], tmp_path: Path
) -> None:
    """As in files above 2 GB."""
    opened = Opened(converted("tinyllama", "transposed"))
    target = tmp_path / "x.tflite"
    write(opened.file, target)
    assert Opened(opened.made, target).weights().outcome == PASS
