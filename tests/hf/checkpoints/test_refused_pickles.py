"""Pickles: none with code in it is run, and none but a state dict is taken."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Refusal = Callable[..., str]


class _Attack:
    """Pickles to a call that creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("style", ["torch", "old torch", "bare pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(
    style: str, folder: Path, tensors: dict, refusal: Refusal
) -> None:
    trap = folder / "run"
    file = folder / "pytorch_model.bin"
    attack = {**tensors, "x": _Attack(trap)}
    if style == "bare pickle":
        file.write_bytes(pickle.dumps({"x": _Attack(trap)}, protocol=2))
    else:
        torch.save(attack, file, _use_new_zipfile_serialization=style == "torch")
    message = refusal(folder)
    assert not trap.exists()
    assert message == (
        "{}/checkpoint/pytorch_model.bin: its pickle asks to run 'posix.mkdir', which was refused "
        "and not run; expected a state dict of tensors and nothing else; "
        "get the weights as .safetensors, from someone you trust"
    )
    # The attack is real: whoever loads it without weights_only is hit.
    if style == "bare pickle":
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert trap.exists()


def test_the_environment_cannot_allow_code(
    folder: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"x": _Attack(folder / "run")}, folder / "pytorch_model.bin")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert "which was refused and not run" in refusal(folder, trust_remote_code=True)
    assert not (folder / "run").exists()


def test_damaged_pickles(folder: Path, tensors: dict, refusal: Refusal) -> None:
    file = folder / "pytorch_model.bin"
    for content in (b"", b"garbage", b"PK\x03\x04garbage"):
        file.write_bytes(content)
        assert refusal(folder).startswith(
            "{}/checkpoint/pytorch_model.bin: cannot be read as a PyTorch state dict ("
        )
    torch.save(tensors, file)
    os.truncate(file, file.stat().st_size // 2)
    assert "cannot be read as a PyTorch state dict (" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds no tensors"),
        ({"epoch": 3}, "holds what is no dense tensor: 'epoch' (int)"),
        ({"a": torch.ones(2), "n": 1}, "holds what is no dense tensor: 'n' (int)"),
        (
            {"a": torch.eye(2).to_sparse()},
            "holds what is no dense tensor: 'a' (sparse_coo)",
        ),
        (
            {"a": torch.ones(2, device="meta")},
            "holds what is no dense tensor: 'a' (without data, on 'meta')",
        ),
        (
            {"state_dict": {"a": torch.ones(1)}, "model": {"a": torch.ones(1)}},
            "holds several candidates: 'state_dict', 'model'",
        ),
    ],
)
def test_what_is_no_state_dict(content: Any, told: str, folder: Path, refusal: Refusal) -> None:
    torch.save(content, folder / "pytorch_model.bin")
    assert refusal(folder).startswith(f"{{}}/checkpoint/pytorch_model.bin: {told}; ")
