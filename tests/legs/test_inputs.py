"""What the implementations are fed with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeverify.core.case import Case, cache_rows_needed, prompt_length
from edgeverify.core.errors import UsageError
from edgeverify.legs import inputs
from edgeverify.legs.selectors import Selectors
from edgeverify_models import load

VOCABULARY = 331


TINY = load("tinyllama").hf_configs["tiny"]


class Words:
    """A tokenizer: each word is its length."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


def plan(
    *, vocabulary: int = VOCABULARY, tokenizer: Any = None, positions: int = 4096, **chosen: Any
) -> Case:
    port: Any = SimpleNamespace(name="m", mask_kinds=("global",))
    checkpoint: Any = SimpleNamespace(size="tiny", hf_config={**TINY, "vocab_size": vocabulary})
    return inputs.plan_case(port, checkpoint, tokenizer, Selectors.of(**chosen), positions)


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=3, unique=True)


@given(LENGTHS, st.integers(1, 9), st.integers(2, 999), st.integers(0, 2**32 - 1))
def test_drawn_tokens_span_the_vocabulary(
    lengths: list[int], steps: int, vocabulary: int, seed: int
) -> None:
    case = plan(prefill=tuple(lengths), decode_steps=steps, vocabulary=vocabulary, seed=seed)
    assert len(case.tokens) == prompt_length(lengths) + steps
    assert min(case.tokens) == 0
    assert max(case.tokens) == vocabulary - 1
    prompt = case.tokens[: prompt_length(lengths)]
    assert {0, vocabulary - 1} <= set(prompt)
    assert case.prefill_lengths == tuple(sorted(lengths))
    assert case.greedy is False


def test_tokens_follow_the_seed_and_the_token_seed_comes_first() -> None:
    assert plan(seed=3) == plan(seed=3)
    assert plan(seed=3).tokens != plan(seed=4).tokens
    assert plan(seed=3, token_seed=4).tokens == plan(seed=4).tokens
    assert plan(seed=3, token_seed=0).tokens == plan(seed=0).tokens  # 0 is a seed, too
    assert len(set(plan(decode_steps=9).tokens[-9:])) > 3  # decode tokens are drawn as well


def test_the_choices_reach_the_case() -> None:
    case = plan(kv_layout="transposed", kernel="builtin", mask_as_input=True, kv_cache_len=200)
    assert (case.kv_layout, case.kernel, case.mask_as_input) == ("transposed", "builtin", True)
    assert case.kv_cache_len == 200
    assert (case.model, case.size) == ("m", "tiny")


def test_a_prompt_is_continued_greedily() -> None:
    case = plan(tokenizer=Words(), prompt="a bb ccc", decode_steps=2)
    assert case.greedy is True
    assert case.tokens == (1, 2, 3, 0, 0)
    assert [step.signature for step in case.steps] == ["prefill_16", "decode", "decode"]


def test_without_a_prompt_a_tokenizer_gets_prose_of_the_planned_length() -> None:
    case = plan(tokenizer=Words(), prefill=(64, 128), decode_steps=1)
    prose = Words()(inputs.PROSE)["input_ids"]
    wanted = prompt_length((64, 128))
    assert wanted > len(prose)  # it is repeated
    assert list(case.tokens[:-1]) == (prose * 4)[:wanted]


def test_a_prompt_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        plan(prompt="hello")
    assert str(error.value) == (
        "--prompt: a prompt needs a tokenizer; expected a --checkpoint that has one; "
        "give the checkpoint's directory, or leave out --prompt"
    )


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="--prompt: the prompt has no tokens"):
        plan(tokenizer=Words(), prompt="  ")


@pytest.mark.parametrize(
    ("chosen", "option"),
    [
        ({}, "--prefill/--kv-cache-len"),
        ({"kv_cache_len": 128}, "--prefill/--kv-cache-len"),
        ({"prefill": (16, 200), "kv_cache_len": None}, "--prefill/--kv-cache-len"),
    ],
)
def test_more_than_the_model_has_positions_for_is_refused(
    chosen: dict[str, Any], option: str
) -> None:
    with pytest.raises(UsageError) as error:
        plan(positions=70, **chosen)
    assert error.value.where == option
    assert error.value.expected == "at most 70"
    assert "--decode-steps" in str(error.value.fix)


def test_the_cache_takes_the_models_last_position_before_it_is_refused() -> None:
    needed = cache_rows_needed(plan().steps)
    assert plan(positions=needed).kv_cache_len == needed
    assert needed < plan().kv_cache_len
    with pytest.raises(UsageError):
        plan(positions=needed - 1)
