"""The catalogue knows the ports without importing them; ``python -m edgeverify_models``."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edgeverify_models as models
from edgeverify_models.__main__ import main

NAMES = ("gemma1", "gemma2", "tinyllama", "phi2", "openelm", "smollm", "smollm2")


def test_names():
    assert tuple(models.CATALOGUE) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_catalogue_and_ports_agree(name):
    entry, port = models.CATALOGUE[name], models.load(name)
    assert port.name == name
    assert sorted(entry.sizes) == sorted(port.hf_configs)
    assert entry.default_size == port.default_size == entry.sizes[0] == "tiny"
    assert dict(port.hub_ids) == dict(entry.hub_ids)


@pytest.mark.parametrize("name", NAMES)
def test_tiny_can_be_checked(name):
    """What the checks need of every tiny: positions, an odd vocabulary, widths that quantize."""
    port = models.load(name)
    config = port.model_config(port.hf_configs["tiny"])
    assert config.max_seq_len >= 256
    assert config.vocab_size % 2 == 1
    assert config.num_layers >= 3
    groups = set()
    for index in range(config.num_layers):
        block = config.block_config(index)
        attn_config = block.attn_config
        groups.add((attn_config.num_query_groups > 1, attn_config.num_heads))
        assert attn_config.num_heads > attn_config.num_query_groups
        # dynamic_int4_block32 needs every contracted width to be a multiple of 32.
        widths = (
            config.embedding_dim,
            attn_config.num_heads * attn_config.head_dim,
            block.ff_config.intermediate_size,
        )
        assert all(width % 32 == 0 and width >= 48 for width in widths)
    assert any(several for several, _ in groups)


def test_unknown_name():
    with pytest.raises(KeyError):
        models.load("gemma9")


def test_import_is_light():
    code = (
        "import sys, models, edgeverify_models.__main__\n"
        "heavy = {'torch', 'litert_torch', 'tensorflow', 'transformers', 'numpy', 'jax'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["gemma9"], "unknown model 'gemma9'; expected one of gemma1, gemma2, tinyllama"),
        (["gemma2", "--size", "9b"], "gemma2 has no size '9b'; expected one of tiny, 2b"),
        (["phi2", "--prompt-length", "0"], "--prompt-length is at least 1"),
        (["phi2", "--prompt-length", "272"], "276 positions are asked for; phi2 tiny has 272"),
    ],
)
def test_bad_usage_is_one_line(capsys, argv, line):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert line in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("name", NAMES)
def test_main_runs_every_port(capsys, name):
    assert main([name, "--prompt-length", "9", "--decode-steps", "2"]) == 0
    out = capsys.readouterr().out
    vocab_size = models.load(name).hf_configs["tiny"]["vocab_size"]
    assert f"{name} tiny: " in out
    assert f"prefill: 9 tokens -> logits ({vocab_size},)" in out
    assert f"decode.1: 1 tokens -> logits ({vocab_size},)" in out
