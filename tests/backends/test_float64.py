"""The oracle: float64 throughout, and nothing of it left in the model afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import edgeverify_models as models
from edgeverify.backends import precision, reference
from edgeverify.backends.float64 import Float64Mode, exact_frequencies, widened
from edgeverify.core.case import Case, plan_steps
from edgeverify.hf.checkpoints import open_checkpoint

NAMES = tuple(models.CATALOGUE)


def make_case(vocabulary: int) -> Case:
    tokens = np.random.default_rng(8).integers(0, vocabulary, 24)
    steps = plan_steps(tokens[:22], (4, 11), tokens[22:])
    return Case("m", "tiny", "default", (4, 11), 40, steps)


def opened(name: str) -> tuple[Mapping[str, Any], dict[str, torch.Tensor]]:
    checkpoint = open_checkpoint(None, models.load(name), size="tiny")
    return checkpoint.hf_config, checkpoint.tensors()


def snapshot(model: nn.Module) -> dict[str, tuple[torch.Tensor, int]]:
    """Name → a copy, and where the storage is; parameters and all buffers."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (t.detach().clone(), t.data_ptr()) for name, t in named.items()}


def assert_untouched(model: nn.Module, before: dict[str, tuple[torch.Tensor, int]]) -> None:
    after = snapshot(model)
    assert after.keys() == before.keys()
    for name, (tensor, place) in before.items():
        assert after[name][0].dtype == tensor.dtype, name
        assert torch.equal(after[name][0], tensor), name
        assert after[name][1] == place, name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_every_tap_is_float64_and_the_model_is_left_as_it_was(name: str) -> None:
    config, state = opened(name)
    model = reference.build(config, state)
    before = snapshot(model)
    case = make_case(config["vocab_size"])
    trace = reference.run_oracle(model, case)
    assert {trace[key].dtype for key in trace} == {np.dtype(np.float64)}
    for key in trace:  # values, too: none was rounded to float32 on its way
        if not key.endswith("/embed") or name.startswith("gemma"):
            assert (trace[key] != trace[key].astype(np.float32)).mean() > 0.9, key
    assert_untouched(model, before)
    places = {tensor.data_ptr() for tensor in state.values()}
    assert {parameter.data_ptr() for parameter in model.parameters()} <= places
    own, _ = reference.run(model, case)
    assert {own[key].dtype for key in own} == {np.dtype(np.float32)}
    for key in trace:
        error = np.abs(own[key] - trace[key]).max() / np.abs(trace[key]).max()
        assert error < 1e-5, key


@pytest.mark.parametrize("name", ["tinyllama", "gemma2", "openelm"])
@pytest.mark.parametrize("where", ["block", "head"])
def test_a_forward_that_raises_leaves_the_model_as_it_was(name: str, where: str) -> None:
    config, state = opened(name)
    model = reference.build(config, state)
    before = snapshot(model)
    inside = precision.blocks_of(model)[1] if where == "block" else model.get_output_embeddings()
    # The last linear layer of the part, so that the parts around it are open at the time.
    part = [module for module in inside.modules() if isinstance(module, nn.Linear)][-1]

    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    handle = part.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError) as error:
        reference.run_oracle(model, make_case(config["vocab_size"]))
    handle.remove()
    assert_untouched(model, before)
    assert error.tb is not None  # it keeps the frames alive: nothing is put back by their end alone


def llama_in_numpy(
    config: Mapping[str, Any], state: Mapping[str, torch.Tensor], tokens: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Llama in float64, from its paper and config: tap → (T, ...)."""
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    dim, length = config["head_dim"], len(tokens)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean = (x**2).mean(-1, keepdims=True)
        return x / np.sqrt(mean + config["rms_norm_eps"]) * weights[f"{name}.weight"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T

    frequency = config["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
    angle = np.arange(length)[:, None] * frequency  # (T, D/2)

    def rotate(x: np.ndarray) -> np.ndarray:
        pairs = x[..., : dim // 2] + 1j * x[..., dim // 2 :]
        turned = pairs * np.exp(1j * angle)[:, None]
        return np.concatenate([turned.real, turned.imag], axis=-1)

    taps = {}
    x = taps["embed"] = weights["model.embed_tokens.weight"][list(tokens)]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        h = taps[f"blocks.{i}.attn_norm"] = norm(x, f"{layer}.input_layernorm")
        q, k, v = (linear(h, f"{layer}.self_attn.{n}_proj").reshape(length, -1, dim) for n in "qkv")
        q, k = rotate(q), rotate(k)
        taps |= {f"blocks.{i}.attn.q": q, f"blocks.{i}.attn.k": k, f"blocks.{i}.attn.v": v}
        attended = np.empty_like(q)
        for head in range(heads):
            group = head // (heads // groups)
            for t in range(length):
                score = k[: t + 1, group] @ q[t, head] / np.sqrt(dim)
                weight = np.exp(score - score.max())
                attended[t, head] = weight @ v[: t + 1, group] / weight.sum()
        out = linear(attended.reshape(length, -1), f"{layer}.self_attn.o_proj")
        taps[f"blocks.{i}.attn.out"] = out
        x = x + out
        h = taps[f"blocks.{i}.ff_norm"] = norm(x, f"{layer}.post_attention_layernorm")
        gate = linear(h, f"{layer}.mlp.gate_proj")
        out = gate / (1 + np.exp(-gate)) * linear(h, f"{layer}.mlp.up_proj")
        out = taps[f"blocks.{i}.ff.out"] = linear(out, f"{layer}.mlp.down_proj")
        x = taps[f"blocks.{i}.out"] = x + out
    taps["final_norm"] = norm(x, "model.norm")
    taps["logits"] = linear(taps["final_norm"], "lm_head")
    return taps


def test_the_oracle_is_llama_recomputed_in_float64() -> None:
    config, state = opened("tinyllama")
    case = make_case(config["vocab_size"])
    oracle = reference.run_oracle(reference.build(config, state), case)
    own = llama_in_numpy(config, state, case.tokens)
    compared = 0
    for step in case.steps:
        for tap, whole in own.items():
            want = whole[step.start : step.end]
            np.testing.assert_allclose(
                oracle[f"{step.name}/{tap}"][0], want, rtol=0, atol=1e-12 * np.abs(want).max()
            )
            compared += 1
        for i in range(config["num_hidden_layers"]):
            for which in "kv":
                cached = own[f"blocks.{i}.attn.{which}"][: step.end]
                np.testing.assert_allclose(
                    oracle[f"{step.name}/kv.{i}.{which}"][0], cached, rtol=0, atol=1e-11
                )
                compared += 1
    assert compared == len(oracle.arrays)


class TestMode:
    def test_narrower_dtypes_become_float64(self) -> None:
        x = torch.ones(3, dtype=torch.float64) / 3
        with Float64Mode():
            assert x.float().dtype == torch.float64
            assert x.to(torch.bfloat16).dtype == torch.float64
            assert torch.equal(x.float(), x)
            assert torch.arange(3, dtype=torch.float32).dtype == torch.float64
            assert torch.softmax(x, 0, dtype=torch.float32).dtype == torch.float64
            assert torch.zeros(2).dtype == torch.float64
            assert torch.arange(3).dtype == torch.int64

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_a_leak_is_an_error(self, dtype: torch.dtype) -> None:
        narrow = torch.ones(3, dtype=dtype)
        with Float64Mode(), pytest.raises(RuntimeError, match="inside the float64 oracle"):
            functional.relu(narrow)

    def test_a_leak_from_a_constant_of_a_model_is_an_error(self) -> None:
        """A tensor that no module holds, as one in a closure, is not widened."""
        hidden = torch.ones(4)

        class Leaky(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + hidden.neg()

        module = Leaky()
        with widened(module), Float64Mode(), pytest.raises(RuntimeError):
            module(torch.ones(4, dtype=torch.float64))

    def test_the_default_dtype_is_put_back(self) -> None:
        with Float64Mode():
            assert torch.get_default_dtype() == torch.float64
        assert torch.get_default_dtype() == torch.float32
        with pytest.raises(KeyError), Float64Mode():
            raise KeyError
        assert torch.get_default_dtype() == torch.float32
        assert torch.ones(2).float().dtype == torch.float32


class Holder(nn.Module):
    """Float tensors in every place that a module may hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.tensor([0.1, 0.2, 0.3]))
        self.register_buffer("ids", torch.arange(3))
        self.mask = torch.full((2, 2), 0.1)
        self.masks = {"global": torch.full((2,), 0.1), "local": [torch.full((1,), 0.7), "text"]}
        self.pair = (torch.full((2,), 0.3), 4)
        self.same = self.mask


def test_everything_a_module_holds_is_widened_and_put_back() -> None:
    module = Holder()
    held = {
        "mask": module.mask,
        "global": module.masks["global"],
        "local": module.masks["local"][0],
        "pair": module.pair[0],
        "scale": module.scale,
    }
    masks, weight, place = module.masks, module.table.weight, module.table.weight.data_ptr()
    copies = {name: tensor.clone() for name, tensor in held.items()}
    weights = weight.detach().clone()
    with widened(module):
        assert module.table.weight is module.head.weight is weight  # still tied, and the same
        assert weight.dtype == torch.float64
        assert torch.equal(weight.detach(), weights.double())
        assert module.scale.dtype == module.mask.dtype == torch.float64
        assert module.masks["global"].dtype == module.masks["local"][0].dtype == torch.float64
        assert module.masks["local"][1] == "text"
        assert module.pair[0].dtype == torch.float64
        assert module.pair[1] == 4
        assert module.same is module.mask
        assert module.ids.dtype == torch.int64
        assert torch.equal(module.mask, copies["mask"].double())
    assert module.masks is masks
    assert (module.mask, module.scale) == (held["mask"], held["scale"]) or (
        module.mask is held["mask"] and module.scale is held["scale"]
    )
    assert module.masks["local"][0] is held["local"]
    assert module.pair[0] is held["pair"]
    assert weight.data_ptr() == place
    assert weight.dtype == torch.float32
    for name, tensor in held.items():
        assert torch.equal(tensor, copies[name])


def test_parameters_that_share_storage_share_it_afterwards() -> None:
    module = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    module[1].weight.data = module[0].weight.data
    with widened(module):
        assert module[1].weight.dtype == torch.float64
    assert module[1].weight.data_ptr() == module[0].weight.data_ptr()


def test_a_body_that_raises_puts_everything_back() -> None:
    module = Holder()
    before, mask = snapshot(module), module.mask
    with pytest.raises(KeyError), widened(module):
        raise KeyError
    assert_untouched(module, before)
    assert module.mask is mask


@pytest.mark.parametrize("name", ["tinyllama", "phi2"])
def test_frequencies_are_computed_in_float64(name: str) -> None:
    config, state = opened(name)
    model = reference.build(config, state)
    rotary = next(module for module in model.modules() if "inv_freq" in module._buffers)
    rotated = 40 if name == "tinyllama" else 10
    want = config["rope_theta"] ** (-np.arange(0, rotated, 2) / rotated)
    got = exact_frequencies(rotary)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-14)
    assert rotary.inv_freq.dtype == torch.float32
