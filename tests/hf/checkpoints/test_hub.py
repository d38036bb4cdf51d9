"""Hub ids: what is asked for, in which order, and what is said when it fails. No network."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify_models.port import Port

HUB_ID = "org/tiny-llama.v1"


class FakeHub:
    """A repository on disk; a snapshot holds what was asked for so far."""

    def __init__(self, root: Path) -> None:
        self.repository = root / "repository"
        self.snapshot = root / "snapshot"
        self.repository.mkdir()
        self.snapshot.mkdir()
        self.asked: list[list[str]] = []

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str]) -> str:
        assert repo_id == HUB_ID
        fetched = []
        for file in sorted(self.repository.iterdir()):
            asked = any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns)
            if asked and not (self.snapshot / file.name).exists():
                fetched.append(file.name)
                shutil.copy(file, self.snapshot / file.name)
        self.asked.append(fetched)
        return str(self.snapshot)


@pytest.fixture
def hub(tmp_path: Path, port: Port, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path)
    config = json.dumps(dict(port.hf_configs["tiny"]))
    (fake.repository / "config.json").write_text(config)
    for name in ("tokenizer.json", "README.md", "model.onnx", "training_args.bin"):
        (fake.repository / name).write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_safetensors_are_fetched_after_the_config_and_instead_of_pickles(
    hub: FakeHub, port: Port, tensors: dict, tmp_path: Path
) -> None:
    save_file(tensors, hub.repository / "model.safetensors")
    torch.save(tensors, hub.repository / "pytorch_model.bin")
    checkpoint = open_checkpoint(HUB_ID, port, cache_root=tmp_path / "cache")
    assert hub.asked == [["config.json", "tokenizer.json"], ["model.safetensors"]]
    assert checkpoint.description == f"{HUB_ID}: safetensors, float32"
    assert checkpoint.tokenizer_dir == hub.snapshot
    assert torch.equal(checkpoint.tensors()["lm_head.weight"], tensors["lm_head.weight"])


def test_pickles_are_fetched_where_there_is_nothing_else(
    hub: FakeHub, port: Port, tensors: dict, tmp_path: Path
) -> None:
    torch.save(tensors, hub.repository / "pytorch_model.bin")
    checkpoint = open_checkpoint(HUB_ID, port, cache_root=tmp_path / "cache")
    assert hub.asked == [["config.json", "tokenizer.json"], [], ["pytorch_model.bin"]]
    assert torch.equal(checkpoint.tensors()["lm_head.weight"], tensors["lm_head.weight"])


def test_another_family_is_told_before_its_weights_are_fetched(
    hub: FakeHub, tensors: dict, refusal: Callable[..., str]
) -> None:
    (hub.repository / "config.json").write_text('{"model_type": "phi"}')
    save_file(tensors, hub.repository / "model.safetensors")
    hub.snapshot_download(HUB_ID, allow_patterns=["config.json", "tokenizer*"])
    assert refusal(HUB_ID).startswith(
        f"{HUB_ID}/config.json: model_type is 'phi'; expected 'llama' for port 'tinyllama'; "
    )
    assert not (hub.snapshot / "model.safetensors").exists()


# All that the client's errors read of a response.
REFUSED = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            errors.GatedRepoError("gated", response=REFUSED),
            "the Hub gives it only to those who accepted its licence; expected a model on the "
            "Hub; accept it on the model's page, then run 'hf auth login'",
        ),
        (
            errors.RepositoryNotFoundError("none", response=REFUSED),
            "there is no such path here, and no such repository on the Hub (or it is private); "
            "expected a model on the Hub; "
            "check the spelling, or run 'hf auth login' for a private one",
        ),
        (
            errors.LocalEntryNotFoundError("offline"),
            "there is no such path here, the Hub cannot be reached, and its cache does not have "
            "it; expected a model on the Hub; "
            "go online (and unset HF_HUB_OFFLINE), or give the path of a local copy",
        ),
        (
            TimeoutError("timed out\nwhile reading"),
            "the download failed (timed out); expected a model on the Hub; "
            "try again, or give the path of a local copy",
        ),
    ],
)
def test_what_the_hub_says_no_with(
    error: Exception, told: str, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert refusal(HUB_ID) == f"{HUB_ID}: {told}"


def test_offline_is_respected(
    refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client, with an empty cache and without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "the Hub cannot be reached, and its cache does not have it" in refusal(HUB_ID)


def test_a_repository_without_a_config(hub: FakeHub, refusal: Callable[..., str]) -> None:
    (hub.repository / "config.json").unlink()
    (hub.repository / "model.Q4_0.gguf").write_bytes(b"GGUF")
    hub.snapshot_download(HUB_ID, allow_patterns=["tokenizer*"])
    assert refusal(HUB_ID) == (
        f"{HUB_ID}: the repository has no config.json; expected a checkpoint in transformers' "
        "format; download the file that is meant (e.g. one .gguf) and give its path"
    )
