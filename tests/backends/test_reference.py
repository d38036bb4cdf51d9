"""The Hugging Face model's own run: that it is that model's, and that every tap is what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import edgeverify_models as models
from edgeverify.backends import precision, reference
from edgeverify.core import taps
from edgeverify.core.case import Case, plan_steps
from edgeverify.core.errors import CheckpointError
from edgeverify.core.trace import Trace
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.hf.config import reference_config

NAMES = tuple(models.CATALOGUE)


@dataclass(frozen=True)
class Tiny:
    """A family's reference with what it was built from, and a case for it."""

    config: Mapping[str, Any]
    state: dict[str, torch.Tensor]
    model: Any
    case: Case

    @property
    def num_blocks(self) -> int:
        return len(precision.blocks_of(self.model))

    def plain(self) -> Any:
        """transformers' model with its own eager attention and no help of ours."""
        config = reference_config(self.config)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        assert not model.load_state_dict(self.state, strict=False).unexpected_keys
        model.tie_weights()
        return model.eval()

    def logits(self, tokens: tuple[int, ...]) -> np.ndarray:
        """(T, V), the whole conversation at once, no cache."""
        with torch.no_grad():
            return self.plain()(torch.tensor([tokens]), use_cache=False).logits[0].numpy()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads waiting for each other make tiny products ten times slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny() -> Callable[[str], Tiny]:
    """``tiny(name)``: made once."""
    made: dict[str, Tiny] = {}

    def get(name: str) -> Tiny:
        if name not in made:
            checkpoint = open_checkpoint(None, models.load(name), size="tiny")
            state = checkpoint.tensors()
            tokens = np.random.default_rng(3).integers(0, checkpoint.hf_config["vocab_size"], 25)
            steps = plan_steps(tokens[:22], (4, 11), tokens[22:])
            case = Case(name, "tiny", "default", (4, 11), 40, steps)
            model = reference.build(checkpoint.hf_config, state)
            made[name] = Tiny(checkpoint.hf_config, state, model, case)
        return made[name]

    return get


def close(got: np.ndarray, want: np.ndarray, tolerance: float = 1e-5) -> bool:
    assert got.shape == want.shape
    return bool(np.abs(got - want).max() <= tolerance * np.abs(want).max())


@pytest.mark.parametrize("name", NAMES)
def test_step_by_step_is_the_models_own_forward(tiny: Callable[[str], Tiny], name: str) -> None:
    family = tiny(name)
    trace, used = reference.run(family.model, family.case)
    assert used == family.case
    whole = family.logits(family.case.tokens)
    for step in family.case.steps:
        assert close(trace[f"{step.name}/logits"][0], whole[step.start : step.end])


@pytest.mark.parametrize("name", NAMES)
def test_every_standard_tap_is_there_in_order_and_shape(
    tiny: Callable[[str], Tiny], name: str
) -> None:
    family = tiny(name)
    own, _ = reference.run(family.model, family.case)
    oracle = reference.run_oracle(family.model, family.case)
    expected = [
        f"{step.name}/{tap}"
        for step in family.case.steps
        for tap in taps.standard_taps(family.num_blocks)
    ]
    assert list(own) == list(oracle) == expected
    assert own.unavailable == {}
    heads = family.config.get("num_attention_heads")
    for step in family.case.steps:
        rows = len(step.tokens)
        for tap in taps.standard_taps(family.num_blocks):
            array = own[f"{step.name}/{tap}"]
            assert array.shape == oracle[f"{step.name}/{tap}"].shape
            assert array.dtype == np.float32
            assert array.shape[1] == (step.end if tap.startswith("kv.") else rows)
            assert array.ndim == (
                4 if tap.startswith("kv.") or tap[-2:] in (".q", ".k", ".v") else 3
            )
            if tap.endswith("attn.q") and heads is not None:
                assert array.shape[2] == heads
        assert own[f"{step.name}/logits"].shape[2] == family.config["vocab_size"]


@pytest.mark.parametrize("name", NAMES)
def test_taps_fit_each_other(tiny: Callable[[str], Tiny], name: str) -> None:
    """What can be told of the taps without running a model: residuals, the cache, the table."""
    family = tiny(name)
    oracle = reference.run_oracle(family.model, family.case)
    own, _ = reference.run(family.model, family.case)
    table = family.plain().get_input_embeddings().weight.detach().double().numpy()
    for trace, tolerance in ((oracle, 1e-12), (own, 1e-5)):
        for step in family.case.steps:
            at = lambda tap, trace=trace, step=step: trace[f"{step.name}/{tap}"]  # noqa: E731
            scale = family.config["hidden_size"] ** 0.5 if name.startswith("gemma") else 1.0
            assert close(at("embed")[0], table[list(step.tokens)] * scale, tolerance)
            x = at("embed")
            for i in range(family.num_blocks):
                for which in "kv":
                    assert np.array_equal(
                        at(f"kv.{i}.{which}")[:, step.start :], at(f"blocks.{i}.attn.{which}")
                    )
                if name == "gemma2":  # norms follow both parts, so the sum is not of the taps
                    continue
                out = x + at(f"blocks.{i}.attn.out") + at(f"blocks.{i}.ff.out")
                assert close(at(f"blocks.{i}.out"), out, tolerance)
                x = at(f"blocks.{i}.out")
    if name == "phi2":
        for key in oracle:
            if key.endswith(".ff_norm"):  # one norm serves both parts
                assert np.array_equal(oracle[key], oracle[key.replace("ff_norm", "attn_norm")])


@pytest.mark.parametrize("name", ["tinyllama", "gemma2"])
def test_the_cache_keeps_the_rows_of_earlier_steps(tiny: Callable[[str], Tiny], name: str) -> None:
    family = tiny(name)
    trace, _ = reference.run(family.model, family.case)
    last = family.case.steps[-1]
    for i in range(family.num_blocks):
        for which in "kv":
            rows = [trace[f"{s.name}/blocks.{i}.attn.{which}"] for s in family.case.steps]
            assert np.array_equal(
                trace[f"{last.name}/kv.{i}.{which}"], np.concatenate(rows, axis=1)
            )


@pytest.mark.parametrize("name", NAMES)
def test_greedy_decoding_feeds_the_argmax(tiny: Callable[[str], Tiny], name: str) -> None:
    family = tiny(name)
    case = replace(family.case.with_decode_tokens([0, 0, 0]), greedy=True)
    trace, used = reference.run(family.model, case)
    prompt = family.case.tokens[:22]
    continued = list(prompt)
    for _ in range(3):
        continued.append(int(family.logits(tuple(continued))[-1].argmax()))
    assert list(used.tokens) == continued
    assert used.greedy is False
    again, _ = reference.run(family.model, used)
    assert all(np.array_equal(again[key], trace[key]) for key in trace)


def test_greedy_decoding_is_generate(tiny: Callable[[str], Tiny]) -> None:
    family = tiny("tinyllama")
    case = replace(family.case.with_decode_tokens([0, 0, 0]), greedy=True)
    _, used = reference.run(family.model, case)
    prompt = torch.tensor([family.case.tokens[:22]])
    generated = family.plain().generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=3,
        max_new_tokens=3,
        pad_token_id=0,
    )
    assert used.tokens == tuple(generated[0].tolist())


class TestInjection:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("at_once", [False, True])
    def test_the_oracles_inputs_give_the_oracles_taps(
        self, tiny: Callable[[str], Tiny], name: str, at_once: bool
    ) -> None:
        family = tiny(name)
        oracle = reference.run_oracle(family.model, family.case)
        if at_once:
            isolated = reference.run_otherwise(
                family.model, family.case, inject=oracle, sequential=False
            )
        else:
            isolated, _ = reference.run(family.model, family.case, inject=oracle)
        assert list(isolated) == list(oracle)
        for key in oracle:
            assert close(isolated[key], oracle[key]), key

    @pytest.mark.parametrize("at_once", [False, True])
    def test_another_input_changes_the_block_that_is_fed_with_it_alone(
        self, tiny: Callable[[str], Tiny], at_once: bool
    ) -> None:
        family = tiny("tinyllama")

        def run(inject: Trace) -> Trace:
            if at_once:
                return reference.run_otherwise(
                    family.model, family.case, inject=inject, sequential=False
                )
            return reference.run(family.model, family.case, inject=inject)[0]

        oracle = reference.run_oracle(family.model, family.case)
        before = run(oracle)
        other = Trace(dict(oracle.arrays))
        for step in family.case.steps:
            key = f"{step.name}/blocks.0.out"  # what block 1 is fed with
            other.arrays[key] = oracle[key] + np.linspace(0.5, 1, oracle[key].shape[-1])
        after = run(other)
        changed = {
            taps.split(key)[1] for key in before if not np.array_equal(before[key], after[key])
        }
        of_block_1 = {
            tap for tap in taps.standard_taps(family.num_blocks) if taps.block_index(tap) == 1
        }
        assert changed == of_block_1

    def test_the_head_is_fed_too(self, tiny: Callable[[str], Tiny]) -> None:
        family = tiny("gemma2")
        oracle = reference.run_oracle(family.model, family.case)
        other = Trace(dict(oracle.arrays))
        last = family.num_blocks - 1
        for step in family.case.steps:
            key = f"{step.name}/blocks.{last}.out"
            other.arrays[key] = oracle[key][..., ::-1].copy()
        before, _ = reference.run(family.model, family.case, inject=oracle)
        after, _ = reference.run(family.model, family.case, inject=other)
        changed = {
            taps.split(key)[1] for key in before if not np.array_equal(before[key], after[key])
        }
        assert changed == {"final_norm", "logits"}


@pytest.mark.parametrize("at_once", [False, True])
def test_gemma_2s_window_ends_where_a_mask_by_hand_ends(
    tiny: Callable[[str], Tiny], at_once: bool
) -> None:
    """Attention recomputed from the tapped q, k and v with a mask that is written out here."""
    family = tiny("gemma2")
    config, case = family.config, family.case
    if at_once:
        trace, tolerance = reference.run_oracle(family.model, case), 1e-12
    else:
        trace, tolerance = reference.run(family.model, case)[0], 1e-5
    assert len(case.tokens) > config["sliding_window"] + 5

    def recomputed(block: int, window: int) -> np.ndarray:
        q, k, v = (
            np.concatenate(
                [trace[f"{s.name}/blocks.{block}.attn.{which}"][0] for s in case.steps]
            ).astype(np.float64)
            for which in "qkv"
        )
        out = np.empty_like(q)
        cap, scale = config["attn_logit_softcapping"], config["query_pre_attn_scalar"] ** -0.5
        for position in range(len(q)):
            seen = [j for j in range(len(q)) if j <= position and position - j < window]
            for head in range(q.shape[1]):
                group = head * k.shape[1] // q.shape[1]
                score = np.tanh(k[seen, group] @ q[position, head] * scale / cap) * cap
                weight = np.exp(score) / np.exp(score).sum()
                out[position, head] = weight @ v[seen, group]
        weight = family.state[f"model.layers.{block}.self_attn.o_proj.weight"].double().numpy()
        return out.reshape(len(q), -1) @ weight.T

    for block in range(family.num_blocks):
        got = np.concatenate([trace[f"{s.name}/blocks.{block}.attn.out"][0] for s in case.steps])
        window = config["sliding_window"] if block % 2 == 0 else 10**6
        assert close(got, recomputed(block, window), tolerance)
        for off in (-1, 1):
            if block % 2 == 0:
                assert not close(got, recomputed(block, window + off), 1e-3)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("name", ["tinyllama", "phi2", "gemma2"])
def test_run_otherwise_is_as_right_and_another_run(
    tiny: Callable[[str], Tiny], name: str, sequential: bool
) -> None:
    family = tiny(name)
    oracle = reference.run_oracle(family.model, family.case)
    own, _ = reference.run(family.model, family.case)
    other = reference.run_otherwise(family.model, family.case, sequential=sequential)
    assert list(other) == list(oracle)
    for key in oracle:
        assert other[key].dtype == np.float32
        assert close(other[key], oracle[key]), key
    usual = reference._run_at_once(family.model, family.case, None)
    first = {
        tap: np.array_equal(other[f"prefill.1/blocks.0.{tap}"], usual[f"prefill.1/blocks.0.{tap}"])
        for tap in ("attn_norm", "attn.q", "attn.v")
    }
    # Angles are rounded otherwise in both ways, and nothing else is where sums are not in order.
    assert first["attn.q"] is False
    assert first["attn.v"] is not sequential
    again, _ = reference.run(family.model, family.case)
    assert all(np.array_equal(again[key], own[key]) for key in own)  # nothing is left behind


def test_progress_is_told_of_every_step(tiny: Callable[[str], Tiny]) -> None:
    family, ticks = tiny("tinyllama"), []
    reference.run(family.model, family.case, tick=lambda: ticks.append(1))
    assert len(ticks) == len(family.case.steps)


def test_a_state_that_does_not_fit_is_refused(tiny: Callable[[str], Tiny]) -> None:
    family = tiny("tinyllama")
    name = "model.layers.1.mlp.up_proj.weight"
    for state, words in (
        ({k: v for k, v in family.state.items() if k != name}, "missing keys"),
        ({**family.state, "model.extra.weight": torch.zeros(2)}, "unexpected keys"),
    ):
        with pytest.raises(CheckpointError, match=words):
            reference.build(family.config, state)
