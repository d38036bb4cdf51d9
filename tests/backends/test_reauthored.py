"""The re-authored model's run: that its taps are what hooks of our own see, in both layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from litert_torch.generative.layers import kv_cache as kv_utils
from litert_torch.generative.layers import scaled_dot_product_attention as sdpa
from torch import nn

import edgeverify_models as models
from edgeverify.backends import reauthored, reference
from edgeverify.core import taps
from edgeverify.core.case import Case, plan_steps
from edgeverify.core.compare import Thresholds, compare
from edgeverify.core.errors import PortError
from edgeverify.core.noise import floor_of
from edgeverify.core.results import UNCHECKED
from edgeverify.core.trace import Trace
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify_models.port import Port, build_model

NAMES = tuple(models.CATALOGUE)
LAYOUTS = ("default", "transposed")
ROWS = 40


@dataclass(frozen=True)
class Tiny:
    """A port with weights, and a case for it: two full chunks, a padded one, decode steps."""

    port: Port
    config: Mapping[str, Any]
    state: dict[str, torch.Tensor]
    case: Case

    def build(self, mask_cache_size: int = ROWS) -> Any:
        return build_model(self.port, self.config, self.state, mask_cache_size=mask_cache_size)

    def run(self, model: Any = None, **changes: Any) -> Trace:
        """``changes`` to the case, or to the run if it takes them."""
        to_run = {
            key: changes.pop(key) for key in ("dtype", "inject", "every_tap") if key in changes
        }
        case = replace(self.case, **changes)
        return reauthored.run(self.build() if model is None else model, case, **to_run)

    def expected(self) -> list[str]:
        blocks = self.port.model_config(self.config).num_layers
        return [
            f"{step.name}/{tap}" for step in self.case.steps for tap in taps.standard_taps(blocks)
        ]

    @cached_property
    def oracle(self) -> Trace:
        return reference.run_oracle(reference.build(self.config, self.state), self.case)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads waiting for each other make tiny products ten times slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny() -> Callable[[str], Tiny]:
    """``tiny(name)``: its weights are drawn once."""
    made: dict[str, Tiny] = {}

    def get(name: str) -> Tiny:
        if name not in made:
            port = models.load(name)
            checkpoint = open_checkpoint(None, port, size="tiny")
            tokens = np.random.default_rng(3).integers(0, checkpoint.hf_config["vocab_size"], 25)
            steps = plan_steps(tokens[:22], (4, 11), tokens[22:])
            assert len(steps[2].tokens) < steps[2].length  # padded
            case = Case(
                name,
                "tiny",
                "default",
                (4, 11),
                ROWS,
                steps,
                mask_kinds=port.mask_kinds,
                window=checkpoint.hf_config.get("sliding_window"),
            )
            made[name] = Tiny(port, checkpoint.hf_config, checkpoint.tensors(), case)
        return made[name]

    return get


def close(got: np.ndarray, want: np.ndarray, tolerance: float = 1e-5) -> bool:
    assert got.shape == want.shape
    return bool(np.abs(got - want).max() <= tolerance * np.abs(want).max())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_tap_is_that_of_the_reference(
    tiny: Callable[[str], Tiny], name: str, layout: str
) -> None:
    family = tiny(name)
    trace = family.run(kv_layout=layout)
    assert list(trace) == family.expected()
    assert trace.unavailable == {}
    oracle = family.oracle
    for key in trace:
        assert trace[key].dtype == np.float32
        assert close(trace[key], oracle[key]), key


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["tinyllama", "gemma2", "phi2", "openelm"])
def test_taps_are_what_other_hooks_see(
    tiny: Callable[[str], Tiny], name: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The modules around the ones that are read, and the arguments of the functions between."""
    family = tiny(name)
    model = family.build()
    trace = family.run(model, kv_layout=layout)
    blocks = list(model.transformer_blocks)
    seen: dict[str, torch.Tensor] = {}

    def on(module: nn.Module, tap: str) -> None:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            seen[tap] = (output[0] if isinstance(output, tuple) else output).clone()

        module.register_forward_hook(hook)

    for i, block in enumerate(blocks):
        on(block, f"blocks.{i}.out")
        on(block.pre_atten_norm, f"blocks.{i}.attn_norm")
        on(block.atten_func, f"blocks.{i}.attn.out")
        on(block.atten_func.qkv_projection, f"{i}.qkv")
        if name == "gemma2":
            on(block.ff.pre_ff_norm, f"blocks.{i}.ff_norm")
            on(block.ff.w2, f"blocks.{i}.ff.out")
        else:
            on(block.pre_atten_norm if name == "phi2" else block.post_atten_norm,
               f"blocks.{i}.ff_norm")  # fmt: skip
            on(block.ff, f"blocks.{i}.ff.out")
    on(model.final_norm, "final_norm")
    on(model.tok_embedding, "embed")
    cache = kv_utils.KVCache.from_model_config(
        ROWS, model.config, kv_layout=reauthored.KV_LAYOUTS[layout]
    )
    compared = set()
    for step in family.case.steps:
        output = model(
            torch.tensor([step.padded_tokens], dtype=torch.int),
            torch.arange(step.start, step.start + step.length, dtype=torch.int),
            cache,
        )
        cache = output["kv_cache"]
        seen["logits"] = output["logits"]
        if model.config.embedding_scale is not None:
            seen["embed"] = seen["embed"] * model.config.embedding_scale
        for i, entry in enumerate(cache.caches):
            transposed = layout == "transposed"
            k = entry.k_cache.transpose(1, 2) if transposed else entry.k_cache
            v = entry.v_cache.permute(0, 3, 1, 2) if transposed else entry.v_cache
            seen |= {f"kv.{i}.k": k[:, : step.end], f"kv.{i}.v": v[:, : step.end]}
            attention = model.config.block_config(i).attn_config
            heads, groups = attention.num_heads, attention.num_query_groups
            parts = seen[f"{i}.qkv"].unflatten(-1, (-1, attention.head_dim))
            q, k, v = parts.split((heads, groups, groups), dim=2)
            q, k = blocks[i].atten_func.query_norm(q), blocks[i].atten_func.key_norm(k)
            share = int(attention.rotary_percentage * attention.head_dim)
            positions = torch.arange(step.start, step.start + step.length)
            seen[f"blocks.{i}.attn.q"] = rotated(q, positions, share, attention.rotary_base)
            seen[f"blocks.{i}.attn.k"] = rotated(k, positions, share, attention.rotary_base)
            seen[f"blocks.{i}.attn.v"] = v
        for tap in taps.standard_taps(len(blocks)):
            got = trace[f"{step.name}/{tap}"]
            want = seen[tap] if tap.startswith("kv.") else seen[tap][:, : len(step.tokens)]
            if tap.endswith(("attn.q", "attn.k")):
                assert close(got, want.detach().numpy(), 1e-5), tap
            else:
                assert np.array_equal(got, want.detach().numpy()), tap
            compared.add(f"{step.name}/{tap}")
    assert compared == set(trace.arrays)


def rotated(x: torch.Tensor, positions: torch.Tensor, share: int, base: float) -> torch.Tensor:
    """RoPE of the first ``share`` elements, halves paired: (B, T, N, H)."""
    frequency = base ** (-torch.arange(0, share, 2, dtype=torch.float64) / share)
    angle = (positions[:, None].double() * frequency)[:, None]
    left, right = x[..., : share // 2].double(), x[..., share // 2 : share].double()
    turned = (
        left * angle.cos() - right * angle.sin(),
        right * angle.cos() + left * angle.sin(),
        x[..., share:].double(),
    )
    return torch.cat(turned, -1).float()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["tinyllama", "gemma2", "phi2"])
def test_a_padded_chunk_has_the_rows_of_one_without_pads(
    tiny: Callable[[str], Tiny], name: str, layout: str
) -> None:
    family = tiny(name)
    padded = family.run(kv_layout=layout)
    exact_steps = tuple(
        replace(step, signature=f"prefill_{len(step.tokens)}", length=len(step.tokens))
        for step in family.case.steps
    )
    exact = family.run(kv_layout=layout, steps=exact_steps)
    assert list(padded) == list(exact)
    for key in exact:
        assert padded[key].shape == exact[key].shape
        assert close(padded[key], exact[key], 2e-6), key


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_masks_as_inputs_are_the_masks_inside(
    tiny: Callable[[str], Tiny], name: str, layout: str
) -> None:
    family = tiny(name)
    inside = family.run(kv_layout=layout)
    given = family.run(family.build(mask_cache_size=0), kv_layout=layout, mask_as_input=True)
    assert list(given) == list(inside)
    for key in inside:
        assert np.array_equal(given[key], inside[key]), key


def test_masks_by_hand() -> None:
    step = plan_steps(range(7), (3,), ())[1]
    assert (step.start, step.length) == (3, 3)
    case = Case("m", "tiny", "default", (3,), 8, (step,), mask_kinds=("global", "local"), window=2)
    masks = reauthored.build_masks(step, case)
    sees = {
        "global": [{0, 1, 2, 3}, {0, 1, 2, 3, 4}, {0, 1, 2, 3, 4, 5}],
        "local": [{2, 3}, {3, 4}, {4, 5}],
    }
    assert isinstance(masks, dict)
    for kind, rows in sees.items():
        assert masks[kind].shape == (1, 1, 3, 8)
        assert masks[kind].dtype == torch.float32
        for row, keys in enumerate(rows):
            assert set(torch.nonzero(masks[kind][0, 0, row] == 0).flatten().tolist()) == keys
            assert int(torch.isneginf(masks[kind][0, 0, row]).sum()) == 8 - len(keys)
    single = reauthored.build_masks(step, replace(case, mask_kinds=("global",)), torch.float64)
    assert isinstance(single, torch.Tensor)
    assert single.dtype == torch.float64
    assert torch.equal(single.float(), masks["global"])
    with pytest.raises(PortError, match="sliding_window"):
        reauthored.build_masks(step, replace(case, window=None))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["tinyllama", "gemma2", "openelm"])
@pytest.mark.parametrize("mask_as_input", [False, True])
def test_in_float64_it_is_exact_and_left_as_it_was(
    tiny: Callable[[str], Tiny], name: str, layout: str, mask_as_input: bool
) -> None:
    family = tiny(name)
    model = family.build(0 if mask_as_input else ROWS)
    choices = {"kv_layout": layout, "mask_as_input": mask_as_input}
    before = family.run(model, **choices)
    places = {key: (t.data_ptr(), t.clone()) for key, t in model.state_dict().items()}
    trace = family.run(model, dtype=torch.float64, **choices)
    assert {trace[key].dtype for key in trace} == {np.dtype(np.float64)}
    for key, array in family.oracle.arrays.items():
        assert close(trace[key], array, 1e-12), key
    for key, tensor in model.state_dict().items():
        assert tensor.data_ptr() == places[key][0]
        assert torch.equal(tensor, places[key][1])
    assert torch.get_default_dtype() == torch.float32
    after = family.run(model, **choices)
    assert all(np.array_equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_blocks_fed_by_the_oracle_give_the_oracles_taps(
    tiny: Callable[[str], Tiny], name: str, layout: str
) -> None:
    family = tiny(name)
    oracle = family.oracle
    isolated = family.run(kv_layout=layout, inject=oracle)
    assert list(isolated) == list(oracle)
    for key in oracle:
        assert close(isolated[key], oracle[key]), key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_faulty_block_does_not_reach_the_next_one(
    tiny: Callable[[str], Tiny], layout: str
) -> None:
    family = tiny("gemma2")
    before = family.run(kv_layout=layout, inject=family.oracle)
    model = family.build()
    down = model.transformer_blocks[1].ff.w2
    down.weight = nn.Parameter(down.weight * 1.5, requires_grad=False)
    after = family.run(model, kv_layout=layout, inject=family.oracle)
    changed = {taps.split(key)[1] for key in before if not np.array_equal(after[key], before[key])}
    assert changed == {"blocks.1.ff.out", "blocks.1.out"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_stretch_fed_by_the_oracle_gives_the_oracles_tap(
    tiny: Callable[[str], Tiny], name: str, layout: str
) -> None:
    family = tiny(name)
    oracle = family.oracle
    alone = family.run(kv_layout=layout, inject=oracle, every_tap=True)
    assert list(alone) == list(oracle)
    for key in oracle:
        assert close(alone[key], oracle[key]), key


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("path", "taps_of"),
    [
        ("pre_atten_norm", {"attn_norm"}),
        ("atten_func.qkv_projection", {"attn.q", "attn.k", "attn.v"}),
        ("atten_func.output_projection", {"attn.out"}),
        ("ff.pre_ff_norm", {"ff_norm"}),
        ("ff.w2", {"ff.out"}),
        ("ff.post_ff_norm", {"out"}),
    ],
)
def test_a_faulty_stretch_does_not_reach_the_next_one(
    tiny: Callable[[str], Tiny], layout: str, path: str, taps_of: set[str]
) -> None:
    """Nor, by way of the cache, the next step."""
    family = tiny("gemma2")
    options = {"kv_layout": layout, "inject": family.oracle, "every_tap": True}
    before = family.run(**options)
    model = family.build()
    part = model.transformer_blocks[1].get_submodule(path)
    part.weight = nn.Parameter(part.weight * 1.5 + 0.1, requires_grad=False)
    after = family.run(model, **options)
    changed = {taps.split(key)[1] for key in before if not np.array_equal(after[key], before[key])}
    assert changed == {f"blocks.1.{tap}" for tap in taps_of}


@pytest.mark.parametrize("name", ["tinyllama", "gemma2"])
def test_the_head_is_fed_too(tiny: Callable[[str], Tiny], name: str) -> None:
    family = tiny(name)
    other = Trace(dict(family.oracle.arrays))
    last = family.port.model_config(family.config).num_layers - 1
    for step in family.case.steps:
        key = f"{step.name}/blocks.{last}.out"
        other.arrays[key] = other[key][..., ::-1].copy()
    before, after = (family.run(inject=inject) for inject in (family.oracle, other))
    changed = {taps.split(key)[1] for key in before if not np.array_equal(after[key], before[key])}
    assert changed == {"final_norm", "logits"}


def test_the_functions_of_the_library_are_put_back(tiny: Callable[[str], Tiny]) -> None:
    def functions() -> list[Any]:
        names = (*reauthored.PLAIN_ATTENTION, reauthored.TRANSPOSED_ATTENTION)
        return [kv_utils.update, kv_utils.update_transposed, *(getattr(sdpa, n) for n in names)]

    before = functions()
    family = tiny("tinyllama")
    model = family.build()
    family.run(model)
    assert functions() == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.final_norm = None
    with pytest.raises(PortError):
        family.run(model)
    assert functions() == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class OtherNames(nn.Module):
    """The same feed-forward, its layers called otherwise."""

    def __init__(self, ff: nn.Module) -> None:
        super().__init__()
        self.gate, self.up, self.down, self.act = ff.w1, ff.w3, ff.w2, ff.act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


def test_layers_of_other_names_are_unavailable_and_said_so(tiny: Callable[[str], Tiny]) -> None:
    family = tiny("tinyllama")
    model = family.build()
    model.transformer_blocks[1].ff = OtherNames(model.transformer_blocks[1].ff)
    trace = family.run(model)
    lost = {
        f"{step.name}/blocks.1.{tap}" for step in family.case.steps for tap in ("ff_norm", "ff.out")
    }
    assert set(trace.unavailable) == lost
    assert set(trace.arrays) == set(family.expected()) - lost
    oracle = family.oracle
    floor = floor_of(oracle.arrays, family.run().arrays)
    loose = Thresholds(rms=50.0, row=50.0)
    results = compare(trace, oracle, floor, loose, family.expected())
    unchecked = {result.tap: result.reason for result in results if result.outcome == UNCHECKED}
    assert set(unchecked) == lost
    assert all("does not pass through the Generative API's layer" in r for r in unchecked.values())


def test_attention_of_its_own_is_unavailable_and_said_so(tiny: Callable[[str], Tiny]) -> None:
    """A block that neither updates the cache nor attends with the library's functions."""

    class OwnAttention(nn.Module):
        def __init__(self, attention: nn.Module) -> None:
            super().__init__()
            self.projection = attention.qkv_projection

        def forward(self, x: torch.Tensor, rope: Any, mask: Any, pos: Any, kv: Any, lora: Any):
            return x, kv

    family = tiny("tinyllama")
    model = family.build()
    model.transformer_blocks[2].atten_func = OwnAttention(model.transformer_blocks[2].atten_func)
    trace = family.run(model)
    lost = ("attn_norm", "attn.q", "attn.k", "attn.v", "attn.out")
    assert set(trace.unavailable) == {
        f"{step.name}/blocks.2.{tap}" for step in family.case.steps for tap in lost
    }


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes"), ValueError("no"), AssertionError(), IndexError("5")]
)
def test_a_model_that_raises_is_the_ports_fault(
    tiny: Callable[[str], Tiny], error: Exception
) -> None:
    family = tiny("tinyllama")
    model = family.build()

    def fail(*args: Any) -> None:
        raise error

    model.transformer_blocks[1].ff.register_forward_pre_hook(fail)
    with pytest.raises(PortError) as told:
        family.run(model)
    assert told.value.__cause__ is error
    assert type(error).__name__ in told.value.what
    assert told.value.where == "tinyllama, step prefill.0 (prefill_4)"
    assert told.value.fix


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_prefill_logits_the_last_block_is_cut_to_its_cache(
    tiny: Callable[[str], Tiny], layout: str
) -> None:
    family = tiny("gemma2")
    full = family.run(kv_layout=layout)
    trace = family.run(kv_layout=layout, prefill_logits=False)
    blocks = family.port.model_config(family.config).num_layers
    for step in family.case.steps:
        wanted = taps.standard_taps(blocks, logits=step.is_decode)
        assert [taps.split(key)[1] for key in trace if key.startswith(step.name)] == list(wanted)
    assert trace.unavailable == {}
    assert all(np.array_equal(trace[key], full[key]) for key in trace)


def test_progress_is_told_of_every_step(tiny: Callable[[str], Tiny]) -> None:
    family, ticks = tiny("tinyllama"), []
    reauthored.run(family.build(), family.case, tick=lambda: ticks.append(1))
    assert len(ticks) == len(family.case.steps)
