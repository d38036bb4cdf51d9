"""Cases: how a prompt is cut into steps, and which cache holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeverify.core.case import (
    Case,
    Step,
    cache_rows_needed,
    check_lengths,
    default_cache_len,
    plan_steps,
    prompt_length,
)
from edgeverify.core.errors import UsageError

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True)
TOKENS = st.lists(st.integers(0, 999), min_size=1, max_size=200)
DECODED = st.lists(st.integers(0, 999), max_size=9)


def make_case(steps: Sequence[Step], lengths: Sequence[int] = (4, 11)) -> Case:
    return Case("m", "tiny", "default", tuple(sorted(lengths)), 64, tuple(steps), greedy=True)


@given(TOKENS, LENGTHS, DECODED)
def test_every_token_is_fed_once_in_order(
    prompt: list[int], lengths: list[int], decoded: list[int]
) -> None:
    case = make_case(plan_steps(prompt, lengths, decoded), lengths)
    assert list(case.tokens) == prompt + decoded
    assert [step.tokens for step in case.steps if step.is_decode] == [(t,) for t in decoded]


@given(TOKENS, LENGTHS, DECODED)
def test_steps_fit_their_signatures_and_follow_each_other(
    prompt: list[int], lengths: list[int], decoded: list[int]
) -> None:
    case = make_case(plan_steps(prompt, lengths, decoded), lengths)
    position = 0
    for step in case.steps:
        assert step.start == position
        assert 1 <= len(step.tokens) <= step.length == case.signatures[step.signature]
        assert len(step.padded_tokens) == step.length
        assert step.padded_tokens[: len(step.tokens)] == step.tokens
        assert set(step.padded_tokens[len(step.tokens) :]) <= {0}
        position = step.end
    prefills = [step for step in case.steps if not step.is_decode]
    assert all(len(step.tokens) == step.length for step in prefills[:-1])  # only the last is padded
    assert case.steps == (*prefills, *(step for step in case.steps if step.is_decode))
    names = [f"prefill.{n}" for n in range(len(prefills))]
    names += [f"decode.{n}" for n in range(len(decoded))]
    assert [step.name for step in case.steps] == names


@given(TOKENS, LENGTHS, DECODED)
def test_the_default_cache_holds_every_step_and_leaves_a_row(
    prompt: list[int], lengths: list[int], decoded: list[int]
) -> None:
    steps = plan_steps(prompt, lengths, decoded)
    needed = cache_rows_needed(steps)
    assert all(step.start + step.length <= needed for step in steps)
    assert any(step.start + step.length == needed for step in steps)
    rows = default_cache_len(steps)
    assert rows % 16 == 0
    assert needed < rows <= needed + 16


@given(LENGTHS)
def test_the_default_prompt_fills_each_signature_and_pads_the_largest(lengths: list[int]) -> None:
    steps = plan_steps(range(prompt_length(lengths)), lengths, ())
    filled = {step.length for step in steps if len(step.tokens) == step.length}
    assert filled == set(lengths)
    rest = prompt_length(lengths) - sum(lengths)
    if rest not in lengths:
        assert steps[-1].length > len(steps[-1].tokens) == rest  # it is padded


def test_a_plan_by_hand() -> None:
    steps = plan_steps(range(100, 100 + 16 + 32 + 32 + 20), (32, 16), (7, 8))
    assert [(s.name, s.signature, s.start, len(s.tokens)) for s in steps] == [
        ("prefill.0", "prefill_16", 0, 16),
        ("prefill.1", "prefill_32", 16, 32),
        ("prefill.2", "prefill_32", 48, 32),
        ("prefill.3", "prefill_32", 80, 20),
        ("decode.0", "decode", 100, 1),
        ("decode.1", "decode", 101, 1),
    ]
    assert cache_rows_needed(steps) == 112  # the pads are written, too
    # A short rest takes the smallest signature that holds it.
    assert [s.length for s in plan_steps(range(18), (4, 11), ())] == [4, 11, 4]
    assert [s.length for s in plan_steps(range(7), (4, 11), ())] == [4, 4]


def test_a_multiple_of_16_is_not_a_cache_without_a_spare_row() -> None:
    assert default_cache_len(plan_steps(range(16), (16,), ())) == 32


def test_decode_tokens_replace_the_placeholders() -> None:
    case = make_case(plan_steps(range(5), (4, 11), (0, 0)))
    given_tokens = case.with_decode_tokens([41, 42])
    assert given_tokens.tokens == (0, 1, 2, 3, 4, 41, 42)
    assert given_tokens.greedy is False
    assert case.tokens == (0, 1, 2, 3, 4, 0, 0)


@given(TOKENS, LENGTHS, DECODED, st.integers(1, 300), st.integers(1, 300))
def test_what_does_not_fit_is_refused_and_nothing_else(
    prompt: list[int], lengths: list[int], decoded: list[int], rows: int, positions: int
) -> None:
    steps = plan_steps(prompt, lengths, decoded)
    fits = max(lengths) <= rows and cache_rows_needed(steps) <= rows <= positions
    if fits:
        check_lengths(lengths, steps, rows, positions)
    else:
        with pytest.raises(UsageError):
            check_lengths(lengths, steps, rows, positions)


@pytest.mark.parametrize(
    ("rows", "positions", "words"),
    [
        (
            31,
            99,
            "--prefill: a prefill of 32 tokens does not fit a KV cache of 31 rows; expected at "
            "most 31; take a shorter --prefill or a longer --kv-cache-len",
        ),
        (
            48,
            99,
            "--kv-cache-len: the case writes 49 rows into a KV cache of 48; expected at least 49; "
            "lengthen --kv-cache-len, or shorten --prefill or --decode-steps",
        ),
        (
            64,
            63,
            "--prefill/--kv-cache-len: a KV cache of 64 rows exceeds the model's 63 positions; "
            "expected at most 63; shorten --prefill, --decode-steps or --kv-cache-len",
        ),
    ],
)
def test_a_refusal_names_the_option(rows: int, positions: int, words: str) -> None:
    steps = plan_steps(range(48), (16, 32), (0,))
    with pytest.raises(UsageError) as error:
        check_lengths((16, 32), steps, rows, positions)
    assert str(error.value) == words


def test_a_file_without_decode_has_the_prefill_signatures_alone() -> None:
    case = Case("m", "tiny", "default", (4, 8), 16, ())
    assert case.signatures == {"prefill_4": 4, "prefill_8": 8, "decode": 1}
    assert replace(case, decode_batch=0).signatures == {"prefill_4": 4, "prefill_8": 8}
