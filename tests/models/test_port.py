"""Loading: one checkpoint tensor, one place, in every naming scheme, without copies or waste."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from edgeverify_models import load
from edgeverify_models.port import LoadError, Port, build_model, construct_empty, map_state


def test_a_replaced_port_works(family):
    """``dataclasses.replace`` gives a working variant."""
    tiny = family("tinyllama")
    calls = []

    class Variant(tiny.port.model_class):
        def forward(self, *args, **kwargs):
            calls.append(1)
            return super().forward(*args, **kwargs)

    variant = replace(tiny.port, name="variant", model_class=Variant)
    model = build_model(variant, tiny.config, tiny.state, mask_cache_size=70)
    assert tiny.error(tiny.run(model)) < 1e-5
    assert calls


def test_unfused_tensors_are_shared_and_the_checkpoint_is_left_as_it_is(family):
    tiny = family("tinyllama")
    before = {name: (value.data_ptr(), value.clone()) for name, value in tiny.state.items()}
    model = tiny.build()
    assert model.tok_embedding.weight.data_ptr() == before["model.embed_tokens.weight"][0]
    gate = model.transformer_blocks[1].ff.w1.weight
    assert gate.data_ptr() == before["model.layers.1.mlp.gate_proj.weight"][0]
    assert list(tiny.state) == list(before)
    for name, (address, value) in before.items():
        assert tiny.state[name].data_ptr() == address
        assert torch.equal(tiny.state[name], value)


def test_a_built_model_is_frozen_and_in_eval_mode(family):
    model = family("gemma2").build()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_every_scheme_tells_why_it_does_not_fit(family):
    tiny = family("gemma1")
    state = {("x." + name): value for name, value in tiny.state.items()}
    with pytest.raises(LoadError) as error:
        map_state(tiny.port, tiny.mapped(), state)
    message = str(error.value)
    assert message.startswith("the checkpoint does not fit port 'gemma1': ")
    assert "scheme 0: tensor 'model.embed_tokens.weight' is not in the checkpoint" in message
    assert "scheme 1: tensor 'embedder.weight' is not in the checkpoint" in message


def test_a_left_over_layer_is_refused(family):
    """A checkpoint of one more layer than the config: upstream's loader drops it silently."""
    tiny = family("smollm")
    fewer = tiny.but(num_hidden_layers=2)
    with pytest.raises(LoadError, match=r"nothing takes 'model\.layers\.2\..* and 3 more"):
        build_model(fewer.port, fewer.config, tiny.state, mask_cache_size=0)


def test_a_left_over_bias_is_refused(family):
    tiny = family("tinyllama")
    biased = tiny.but(attention_bias=True).state
    with pytest.raises(
        LoadError, match=r"nothing takes 'model\.layers\.0\.self_attn\.q_proj\.bias'"
    ):
        build_model(tiny.port, tiny.config, biased, mask_cache_size=0)


def test_a_module_that_the_checkpoint_does_not_fill_is_refused(family):
    tiny = family("smollm")

    class WithExtra(tiny.port.model_class):
        def __init__(self, config, mask_cache_size=0):
            super().__init__(config, mask_cache_size)
            self.extra = nn.Linear(2, 3)

    port = replace(tiny.port, model_class=WithExtra)
    with pytest.raises(LoadError, match=r"sets no value for 'extra\.bias', 'extra\.weight'"):
        build_model(port, tiny.config, tiny.state, mask_cache_size=0)


@pytest.mark.parametrize("name", ["gemma2", "tinyllama"])
def test_construction_leaves_torch_as_it_was_and_draws_nothing(name):
    """Parameters are on meta, masks are real, and the global generator is not advanced."""
    port: Port = load(name)
    config = port.model_config(port.hf_configs["tiny"])
    original = nn.Module.register_parameter
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = construct_empty(port, config, mask_cache_size=32)
    assert torch.equal(torch.get_rng_state(), before)
    assert nn.Module.register_parameter is original
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    masks = model.mask_cache.values() if name == "gemma2" else [model.mask_cache]
    for mask in masks:
        assert mask.device.type == "cpu"
        assert mask.shape == (1, 1, 32, 32)

    class Fails(port.model_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            raise RuntimeError("in the constructor")

    with pytest.raises(RuntimeError, match="in the constructor"):
        construct_empty(replace(port, model_class=Fails), config, mask_cache_size=0)
    assert nn.Module.register_parameter is original


@pytest.mark.slow  # imports all ports in a process of its own: 15 s of CPU
def test_ports_stand_on_litert_torch_alone():
    """No port imports the verifier, transformers or LiteRT-Torch's examples."""
    code = (
        "import sys, models\n"
        "for name in models.CATALOGUE: models.load(name)\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('edgeverify', 'transformers')\n"
        "       or m.startswith('litert_torch.generative.examples')]\n"
        "print(sorted(bad)[:5])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
