"""What is there at all, and its config: the words, and that nothing was written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

Refusal = Callable[..., str]
AGAIN = "copy or download it again"


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_empty_directory(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty") == (
        "{}/empty: is an empty directory; expected model.safetensors, its shards with an index, "
        "pytorch_model.bin or one .gguf; "
        "give a directory with config.json and .safetensors, or name the file"
    )


def test_only_what_a_trainer_leaves(folder: Path, refusal: Refusal) -> None:
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / "training_args.bin").write_bytes(b"x")
    message = refusal(folder)
    assert "holds no weights ('optimizer.pt', 'training_args.bin' are none)" in message


def test_an_adapter_alone(folder: Path, refusal: Refusal) -> None:
    save_file({"lora_A": torch.ones(2)}, folder / "adapter_model.safetensors")
    assert refusal(folder).endswith("; merge the adapter into its base model and save that")


def test_missing_config(folder: Path, tensors: dict, refusal: Refusal) -> None:
    (folder / "config.json").unlink()
    save_file(tensors, folder / "model.safetensors")
    assert refusal(folder) == (
        "{}/checkpoint: has no config.json; expected the config that the weights belong to; "
        "put it there, or give --size (1.1b, tiny)"
    )
    assert "has no config.json beside it" in refusal(folder / "model.safetensors")


def test_not_a_path_and_not_a_hub_id(refusal: Refusal) -> None:
    assert refusal("/no/such/path") == (
        "/no/such/path: there is no such file or directory; expected a path, or a hub id of the "
        "form org/name; give a directory with config.json and .safetensors, or name the file"
    )


def test_nothing_named(refusal: Refusal) -> None:
    assert refusal("") == (
        "--checkpoint: names nothing; give a directory with config.json and .safetensors, or name "
        "the file"
    )


def test_a_link_to_nothing(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert refusal(tmp_path / "link").startswith("{}/link: is a link to nothing; ")


def test_unknown_ending(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert refusal(tmp_path / "model.onnx").startswith(
        "{}/model.onnx: is no weights file by its ending '.onnx'; "
        "expected .safetensors, .bin, .pt, .pth or .gguf; "
    )


def test_neither_file_nor_directory(tmp_path: Path, refusal: Refusal) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "is neither a file nor a directory" in refusal(tmp_path / "pipe.safetensors")


def test_several_could_be_meant(folder: Path, tensors: dict, refusal: Refusal) -> None:
    save_file(tensors, folder / "a.safetensors")
    save_file(tensors, folder / "b.safetensors")
    assert refusal(folder) == (
        "{}/checkpoint: 2 files could be the weights: 'a.safetensors', 'b.safetensors'; "
        "expected one; give the path of the one that is meant"
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_unreadable(
    name: str, folder: Path, tensors: dict, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(tensors, folder / "model.safetensors")
    # Tests may run as root, whom no permission stops.
    real_open = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(folder) == (
        f"{{}}/checkpoint/{name}: cannot be read (Permission denied); expected a readable file or "
        "directory; check the path and its permissions"
    )


def test_config_that_is_no_json(folder: Path, tensors: dict, refusal: Refusal) -> None:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": ')
    assert refusal(folder) == (
        "{}/checkpoint/config.json: is not valid JSON (Expecting value: line 1 column 16 "
        f"(char 15)); expected a JSON object; {AGAIN}"
    )
    (folder / "config.json").write_text("[]")
    assert "holds a JSON list" in refusal(folder)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "is not valid JSON" in refusal(folder)


def test_another_family_is_told_before_the_weights_are_looked_at(
    folder: Path, refusal: Refusal
) -> None:
    (folder / "model.safetensors").write_bytes(b"not even looked at")
    edit_config(folder, model_type="gemma2")
    assert refusal(folder) == (
        "{}/checkpoint/config.json: model_type is 'gemma2'; expected 'llama' for port "
        "'tinyllama'; take a checkpoint of this family, or the port of that one (edgeverify list)"
    )
    edit_config(folder, model_type=None)
    assert "there is no model_type" in refusal(folder)


def test_config_that_the_port_cannot_express(folder: Path, tensors: dict, refusal: Refusal) -> None:
    save_file(tensors, folder / "model.safetensors")
    edit_config(folder, rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert refusal(folder).startswith(
        "{}/checkpoint/config.json: port 'tinyllama' cannot build a model from this config ("
    )


@pytest.mark.parametrize(
    "changes", [{"hidden_size": "wide"}, {"num_attention_heads": 0}, {"hidden_act": "none"}]
)
def test_config_that_makes_no_model(
    changes: dict, folder: Path, tensors: dict, refusal: Refusal
) -> None:
    save_file(tensors, folder / "model.safetensors")
    edit_config(folder, **changes)
    message = refusal(folder)
    assert "cannot build a model from this config (" in message
    assert message.startswith("{}/checkpoint/config.json: ")


def test_config_of_another_size(folder: Path, tensors: dict, refusal: Refusal) -> None:
    save_file(tensors, folder / "model.safetensors")
    edit_config(folder, rms_norm_eps=1e-5, rope_theta=1e4)
    assert refusal(folder, size="tiny") == (
        "{}/checkpoint/config.json: is not the config of size 'tiny': rms_norm_eps is 1e-05, not "
        "0.005, rope_parameters is {'rope_theta': 10000.0, 'rope_type': 'default'}, not "
        "{'rope_theta': 3700.0, 'rope_type': 'default'}; expected size 'tiny' of port "
        "'tinyllama'; leave --size out: the checkpoint's own config decides"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "w.gguf"])
def test_a_pipe_in_the_place_of_weights_is_refused_at_once(
    name: str, folder: Path, refusal: Refusal
) -> None:
    os.mkfifo(folder / name)
    assert f"{name}: is a pipe, a socket or a device; expected a regular file" in refusal(folder)
    assert "is neither a file nor a directory" in refusal(folder / name)


def test_a_link_to_nothing_in_the_place_of_weights(folder: Path, refusal: Refusal) -> None:
    (folder / "model.safetensors").symlink_to(folder / "gone")
    assert "No such file" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_theta": "3700.0"}, "rope_theta is '3700.0'"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
            "rope_parameters is {'rope_type': 'default', 'rope_theta': None}",
        ),
        ({"pad_token_id": 331}, "vocab_size is 331 or pad_token_id is 331"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"rms_norm_eps": "5e-3"}, "rms_norm_eps is '5e-3'"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is '3'"),
        ({"hidden_act": "gelu_python_tanh"}, "hidden_act is 'gelu_python_tanh'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling is {'rope_type'"),
    ],
    ids=str,
)
def test_the_key_and_the_value_that_make_no_model(
    changes: dict[str, Any], named: str, folder: Path, tensors: dict, refusal: Refusal
) -> None:
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if "rope_parameters" in changes:
        config = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling")}
    path.write_text(json.dumps({**config, **changes}))
    message = refusal(folder)
    assert "cannot build a model from this config" in message
    assert named in message


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_local_experts", "n_layer"])
def test_a_number_of_parts_that_would_take_hours_is_refused_at_once(
    key: str, folder: Path, tensors: dict, refusal: Refusal
) -> None:
    save_file(tensors, folder / "model.safetensors")
    edit_config(folder, **{key: 1_000_000_000})
    assert f"{key} is 1000000000; expected at most 10000; correct the key" in refusal(folder)
