"""A container is held against its checkpoint: a right one passes, each fault is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from edgeverify.audits.bundle import Checkpoint, Held, audit_bundle
from edgeverify.core.results import FAIL, PASS, UNCHECKED, AuditResult
from edgeverify.litert.bundle import writer
from tests.legs.runtime.engine.conftest import TEMPLATE, make_tokenizer

ROWS, VOCABULARY = 96, 340
GENERATION = {"eos_token_id": [2, 9]}
WITHOUT_BOS = TEMPLATE.replace("{{ bos_token }}", "")
LAST = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% if loop.last %}<last>{% endif %}\n{% endfor %}"
)


def tokenizer(template: str | None = TEMPLATE, *, size: int = 331) -> Any:
    made = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(size, bos=True),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    made.chat_template = template
    return made


def checkpoint(words: Any = None, **changes: Any) -> Checkpoint:
    hf_config = {"model_type": "llama", "vocab_size": VOCABULARY, "eos_token_id": 2}
    found = Checkpoint(tokenizer() if words is None else words, hf_config, GENERATION, ROWS)
    return replace(found, **changes)


def held(words: Any, template: str | None, **changes: Any) -> Held:
    """A right container; ``changes`` to its metadata, where None removes a field."""
    metadata: dict[str, Any] = {
        "start_token": {"token_ids": {"ids": [1]}},
        "stop_tokens": [{"token_ids": {"ids": [token]}} for token in (2, 9)],
        "jinja_prompt_template": template,
        "max_num_tokens": ROWS,
        "llm_model_type": {"generic_model": {}},
    }
    metadata = {k: v for k, v in {**metadata, **changes}.items() if v is not None}
    backend = words.backend_tokenizer
    return Held(
        metadata,
        encode=lambda text: list(backend.encode(text, add_special_tokens=False).ids),
        vocabulary=backend.get_vocab(with_added_tokens=True),
    )


def engine_template(words: Any) -> str:
    template = writer.usage_of(words, {}, ROWS).template
    assert template is not None
    return template


def audited(words: Any = None, **changes: Any) -> AuditResult:
    words = tokenizer() if words is None else words
    return audit_bundle(held(words, engine_template(words), **changes), checkpoint(words))


def odd(result: AuditResult) -> list[tuple[str, str]]:
    return [(check.item, check.outcome) for check in result.odd]


def ids(*tokens: int) -> list[Mapping[str, Any]]:
    return [{"token_ids": {"ids": [token]}} for token in tokens]


def test_a_right_container_passes() -> None:
    result = audited()
    assert odd(result) == []
    assert {check.item for check in result.checks} == {
        "max_num_tokens",
        "model type",
        "tokenizer's vocabulary",
        "tokenizer",
        "stop tokens",
        "chat template, one turn",
        "chat template, three turns",
        "chat template, a system message",
        "chat template, turn by turn",
    }


@pytest.mark.parametrize(
    ("changes", "item", "expected", "found"),
    [
        ({"start_token": None}, "start token", "'<s>' once", "'<s>' not at all"),
        ({"start_token": ids(5)[0]}, "chat template, one turn", "<s>", ""),
        ({"stop_tokens": ids(2)}, "stop tokens", "2 '</s>', 9", "2 '</s>'"),
        ({"stop_tokens": ids(2, 9, 40)}, "stop tokens", "2 '</s>', 9", "40"),
        ({"stop_tokens": None}, "stop tokens", "2 '</s>', 9", "none"),
        ({"max_num_tokens": ROWS + 1}, "max_num_tokens", f"at most {ROWS}", f"{ROWS + 1}"),
        ({"llm_model_type": {"gemma3": {}}}, "model type", "generic_model", "gemma3"),
    ],
    ids=str,
)
def test_a_fault_is_named_with_expected_and_found(
    changes: dict[str, Any], item: str, expected: str, found: str
) -> None:
    failed = [check for check in audited(**changes).checks if check.outcome == FAIL]
    check = next(check for check in failed if check.item == item)
    assert expected in check.expected
    assert found in check.found


@pytest.mark.parametrize(
    ("changes", "item"),
    [
        ({"max_num_tokens": None}, "max_num_tokens"),
        ({"llm_model_type": {"fast_vlm": {}}}, "model type"),
        ({"stop_tokens": [*ids(2, 9), {"token_ids": {"ids": [4, 5]}}]}, "stop tokens"),
    ],
    ids=str,
)
def test_what_cannot_be_known_is_unchecked(changes: dict[str, Any], item: str) -> None:
    assert odd(audited(**changes)) == [(item, UNCHECKED)]


@pytest.mark.parametrize(
    "changes",
    [
        {"max_num_tokens": ROWS - 8},
        {"llm_model_type": None},
        {"stop_tokens": [{"token_str": "</s>"}, *ids(9)]},
        {"start_token": {"token_str": "<s>"}},
    ],
    ids=str,
)
def test_other_ways_to_say_the_same_pass(changes: dict[str, Any]) -> None:
    assert odd(audited(**changes)) == []


def test_a_start_token_that_the_template_has_too_is_told_once() -> None:
    words = tokenizer()
    template = engine_template(words).replace('bos_token = ""', 'bos_token = "<s>"')
    result = audit_bundle(held(words, template), checkpoint(words))
    (check,) = [check for check in result.checks if check.outcome == FAIL]
    assert (check.item, check.expected, check.found) == (
        "start token",
        "'<s>' once",
        "'<s>' twice",
    )


@pytest.mark.parametrize("template", [TEMPLATE, WITHOUT_BOS, f"<s>{WITHOUT_BOS}"])
def test_what_convert_writes_passes_whoever_puts_the_start_token(template: str) -> None:
    words = tokenizer(template)
    usage = writer.usage_of(words, {}, ROWS)
    start = None if usage.start is None else ids(usage.start)[0]
    result = audit_bundle(held(words, usage.template, start_token=start), checkpoint(words))
    assert odd(result) == []


def test_a_template_that_renders_an_earlier_turn_otherwise_is_told() -> None:
    words = tokenizer(LAST)
    usage = writer.usage_of(words, {}, ROWS)
    result = audit_bundle(held(words, usage.template, start_token=None), checkpoint(words))
    assert odd(result) == [("chat template, turn by turn", FAIL)]
    assert "LiteRT-LM refuses" in result.odd[0].reason


@pytest.mark.parametrize(
    ("edit", "item"),
    [
        (lambda text: text.replace("[assistant]", "[model]"), "chat template, one turn"),
        (lambda text: text + "{{ nothing.at.all }}", "chat template, one turn"),
        (lambda text: text + "!", "chat template, three turns"),
    ],
    ids=["another role", "an error", "more at the end"],
)
def test_another_template_is_told(edit: Callable[[str], str], item: str) -> None:
    words = tokenizer()
    template = edit(engine_template(words))
    result = audit_bundle(held(words, template), checkpoint(words))
    assert item in [name for name, _ in odd(result)]


def test_another_tokenizer_is_told_by_its_vocabulary_and_its_ids() -> None:
    words, other = tokenizer(), tokenizer(size=330)
    container = replace(
        held(words, engine_template(words)),
        encode=held(other, None).encode,
        vocabulary=held(other, None).vocabulary,
    )
    assert ("tokenizer's vocabulary", FAIL) in odd(audit_bundle(container, checkpoint(words)))


def test_a_tokenizer_that_splits_otherwise_is_told() -> None:
    words = tokenizer()
    right = held(words, engine_template(words))
    assert right.encode is not None
    encode = right.encode
    container = replace(right, encode=lambda text: encode(text.lower()))
    assert odd(audit_bundle(container, checkpoint(words))) == [("tokenizer", FAIL)]


def test_a_tokenizer_that_is_not_read_is_unchecked() -> None:
    words = tokenizer()
    container = replace(
        held(words, engine_template(words)), encode=None, vocabulary=None, why_not="SentencePiece"
    )
    result = audit_bundle(container, checkpoint(words))
    assert odd(result) == [("tokenizer", UNCHECKED)]
    assert result.odd[0].reason == "SentencePiece"


def test_a_checkpoint_without_a_tokenizer_leaves_its_use_unchecked() -> None:
    words = tokenizer()
    found = replace(checkpoint(words), tokenizer=None)
    result = audit_bundle(held(words, engine_template(words)), found)
    assert {outcome for _, outcome in odd(result)} == {UNCHECKED}
    assert len(odd(result)) == 4


def test_without_a_chat_template_the_tokenizer_says_the_start_token() -> None:
    words = tokenizer(None)
    result = audit_bundle(held(words, None), checkpoint(words))
    assert odd(result) == []
    result = audit_bundle(held(words, None, start_token=None), checkpoint(words))
    assert odd(result) == [("start token", FAIL)]
    result = audit_bundle(held(words, "{{ messages }}"), checkpoint(words))
    assert odd(result) == [("chat template", UNCHECKED)]


def test_affixes_are_a_template_too() -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}U:{{ m['content'] }};"
        "{% elif m['role'] == 'system' %}S:{{ m['content'] }};"
        "{% else %}A:{{ m['content'] }};{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    words = tokenizer(template)
    affixes = {
        "user": {"prefix": "U:", "suffix": ";"},
        "system": {"prefix": "S:", "suffix": ";"},
        "model": {"prefix": "A:", "suffix": ";"},
    }
    right = held(words, None, start_token=None, prompt_templates=affixes)
    assert odd(audit_bundle(right, checkpoint(words))) == []
    affixes["model"]["prefix"] = "B:"
    names = [name for name, _ in odd(audit_bundle(right, checkpoint(words)))]
    assert "chat template, one turn" in names


def test_an_end_beyond_the_table_and_a_stop_string_are_told() -> None:
    words = tokenizer()
    found = replace(checkpoint(words), generation={**GENERATION, "stop_strings": ["STOP here"]})
    result = audit_bundle(held(words, engine_template(words)), found)
    assert odd(result) == [("stop strings", UNCHECKED)]
    small = replace(checkpoint(words), hf_config={**checkpoint(words).hf_config, "vocab_size": 9})
    (check,) = audit_bundle(held(words, engine_template(words)), small).odd
    assert (check.item, check.outcome, check.found) == ("stop tokens", UNCHECKED, "{9}")


def test_the_words_of_a_pass() -> None:
    assert audited().outcome == PASS
