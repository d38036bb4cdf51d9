"""Conversion: what is traced, what is shown, what a failure says."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import edgeverify_models as models
from edgeverify.core.case import Case, Step, plan_steps
from edgeverify.core.errors import ArtifactError
from edgeverify.core.progress import Progress
from edgeverify.core.quiet import quiet, terminal
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.litert.convert import convert, sample_inputs
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify_models.port import build_model


def case_of(**choices: Any) -> Case:
    step = Step("decode.0", "decode", 1, 0, (1,))
    return Case("mine", "tiny", "default", (4, 11), 40, (step,), **choices)


class Branching(nn.Module):
    """Cannot be exported: it branches on a tensor's value."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, tokens: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        os.write(1, b"told by native code\n")
        if tokens.sum() > 0:
            return {"logits": tokens.float()}
        return {"logits": -tokens.float()}


@pytest.mark.slow
def test_a_model_that_cannot_be_exported(
    converted: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = converted("tinyllama", "default").model.config
    with pytest.raises(ArtifactError) as caught:
        convert(Branching(config).eval(), case_of(), tmp_path / "x.tflite", Progress())
    assert caught.value.where == "mine tiny"
    assert caught.value.what.startswith("the conversion failed (")
    assert "data-dependent" in caught.value.what  # the reason, not the advice below it
    assert "expected a .tflite with prefill_4, prefill_11, decode" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    shown = capfd.readouterr()
    assert "told by native code" in shown.err
    assert shown.out == ""


@pytest.mark.slow
def test_a_conversion_is_quiet_and_tells_its_stage(
    converted: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = converted("tinyllama", "default").model
    stages: list[str] = []

    class Recording(Progress):
        def stage(self, name: str, total: int | None = None) -> Any:
            stages.append(name)
            return super().stage(name, total)

    path = tmp_path / "x.tflite"
    step = Step("decode.0", "decode", 1, 0, (1,))
    capfd.readouterr()
    convert(model, Case("mine", "tiny", "default", (4,), 40, (step,)), path, Recording())
    assert stages == ["convert"]
    assert capfd.readouterr() == ("", "")
    assert list(ModelFile(path).signatures) == ["prefill_4", "decode"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.tflite"]


@pytest.mark.slow
def test_a_disk_without_room_is_refused_before_the_conversion(
    converted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = converted("tinyllama", "default").model
    usage = SimpleNamespace(free=10 * 2**20)
    monkeypatch.setattr("edgeverify.core.store.entries.shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr(
        "edgeverify.litert.convert._convert", lambda *_: pytest.fail("it was begun")
    )
    words = r"the disk is full: 10 MiB are free; expected \S+ MiB for"
    with pytest.raises(ArtifactError, match=words):
        convert(model, case_of(), tmp_path / "x.tflite")


@pytest.mark.slow
def test_samples_are_made_anew(converted: Callable[..., Any]) -> None:
    config = converted("tinyllama", "default").model.config
    case = case_of(mask_as_input=True, mask_kinds=("global", "local"))
    first, second = sample_inputs(config, case, 4), sample_inputs(config, case, 4)
    assert first["mask"].keys() == {"global", "local"}
    assert first["mask"]["local"].shape == (1, 1, 4, 40)
    one_kind = case_of(mask_as_input=True, mask_kinds=("global",))
    assert sample_inputs(config, one_kind, 1)["mask"].shape == (1, 1, 1, 40)
    pairs = [
        (first["tokens"], second["tokens"]),
        (first["input_pos"], second["input_pos"]),
        (first["mask"]["local"], second["mask"]["local"]),
        *(
            (a.k_cache, b.k_cache)
            for a, b in zip(first["kv_cache"].caches, second["kv_cache"].caches, strict=True)
        ),
    ]
    assert not [1 for a, b in pairs if a.data_ptr() == b.data_ptr()]


def test_quiet_hides_what_native_code_writes(capfd: pytest.CaptureFixture[str]) -> None:
    before = terminal()
    with quiet():
        os.write(1, b"hidden")
        os.write(2, b"hidden")
        print("hidden")
        print("hidden", file=sys.stderr)
        print("drawn", file=before, flush=True)
    before.close()
    os.write(1, b"shown")
    assert capfd.readouterr() == ("shown", "drawn\n")


def test_quiet_shows_the_end_of_what_was_written_if_it_fails(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        os.write(1, b"x" * 100_000)
        os.write(2, b"the reason")
        raise KeyError

    with pytest.raises(KeyError), quiet():
        fail()
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err) == 20_000
    assert err.endswith("the reason")


def test_quiet_can_be_turned_off(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet(False):
        os.write(1, b"shown")
    assert capfd.readouterr().out == "shown"


@pytest.mark.slow
def test_nothing_holds_the_weights_after_a_conversion(tmp_path: Path) -> None:
    """At full size the runtime needs the room: its own copies are three times the weights."""
    port = models.load("smollm")
    checkpoint = open_checkpoint(None, port)
    state = checkpoint.tensors()
    model = build_model(port, checkpoint.hf_config, state, mask_cache_size=16)
    case = Case("smollm", "tiny", "default", (4,), 16, plan_steps([1, 2, 3], [4], [5]))
    convert(model, case, tmp_path / "model.tflite")
    addresses = {tensor.data_ptr() for tensor in state.values()}
    del state, model
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
    held = [t for t in tensors if t.device.type == "cpu" and t.data_ptr() in addresses]
    assert held == []
