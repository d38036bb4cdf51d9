"""A case is planned from what a file is."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from edgeverify.core.errors import UsageError
from edgeverify.legs.foreign.case import FileCase, case_of, wanted_tokens
from edgeverify.litert.interface import Facts

FACTS = Facts(
    prefill={"prefill_4": 4, "prefill": 11},
    kv_layout="transposed",
    layout_from="writes",
    kv_cache_len=40,
    blocks=3,
    vocabulary=99,
    masks=("global", "local"),
    prefill_logits=False,
    decode_batch=1,
    others={"embed": "is odd"},
)


def planned(facts: Facts = FACTS, steps: int = 2) -> FileCase:
    prompt = range(wanted_tokens(facts))
    return case_of(facts, list(prompt), [0] * steps, model="m", size="s", greedy=True)


def test_the_case_is_the_files() -> None:
    case = planned()
    assert [(s.name, s.signature, s.start, len(s.tokens)) for s in case.steps] == [
        ("prefill.0", "prefill_4", 0, 4),
        ("prefill.1", "prefill", 4, 11),
        ("prefill.2", "prefill", 15, 7),
        ("decode.0", "decode", 22, 1),
        ("decode.1", "decode", 23, 1),
    ]
    assert case.signatures == {"prefill_4": 4, "prefill": 11, "decode": 1}
    assert (case.kv_layout, case.kv_cache_len) == ("transposed", 40)
    assert (case.mask_as_input, case.prefill_logits, case.greedy) == (True, False, True)
    assert case.unused == ()


def test_it_survives_json() -> None:
    case = planned()
    assert FileCase.from_dict(json.loads(json.dumps(asdict(case)))) == case
    assert Facts.from_dict(json.loads(json.dumps(FACTS.to_dict()))) == FACTS


def test_its_decode_tokens_can_be_set() -> None:
    case = planned().with_decode_tokens([5, 6])
    assert isinstance(case, FileCase)
    assert [s.tokens for s in case.steps[-2:]] == [(5,), (6,)]
    assert case.signatures == planned().signatures


@pytest.mark.parametrize(
    ("rows", "lengths"), [(26, [4, 11, 7]), (25, [4, 11, 4]), (18, [4, 11]), (14, [4, 4])]
)
def test_a_short_cache_shortens_the_prompt(rows: int, lengths: list[int]) -> None:
    case = planned(replace(FACTS, kv_cache_len=rows))
    assert [len(s.tokens) for s in case.steps if not s.is_decode] == lengths
    assert max(s.start + s.length for s in case.steps) <= rows
    assert case.unused == (("prefill",) if 11 not in lengths else ())


def test_a_cache_without_room_is_refused() -> None:
    with pytest.raises(UsageError, match=r"9 decode steps do not fit .* of 9 rows"):
        planned(replace(FACTS, kv_cache_len=9), steps=9)


def test_several_conversations_at_once_are_not_decoded() -> None:
    case = planned(replace(FACTS, decode_batch=2))
    assert [s.name for s in case.steps] == ["prefill.0", "prefill.1", "prefill.2"]
    assert not case.greedy
    assert case.unused == ("decode",)
