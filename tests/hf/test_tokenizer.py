"""The tokenizer that remembers: its answers are the tokenizer's own, and never an older one's."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from edgeverify.core.errors import CheckpointError
from edgeverify.hf.tokenizer import RememberedTokenizer

TEXT = "two ships on the horizon"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer whose words are numbered in the order of ``TEXT``."""
    made = tmp_path / "checkpoint"
    made.mkdir()
    write(made, TEXT.split())
    return made


def write(folder: Path, words: list[str]) -> None:
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def opened(folder: Path, **options: Any) -> RememberedTokenizer:
    options = {"trust_remote_code": False, "cache": folder.parent / "cache", **options}
    return RememberedTokenizer(folder, None, **options)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is loaded while the test runs."""
    found: list[str] = []
    load = transformers.AutoTokenizer.from_pretrained

    def noted(directory: str, **options: Any) -> Any:
        found.append(directory)
        return load(directory, **options)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", noted)
    return found


def test_answers_are_the_tokenizer_s_and_asked_once(folder: Path, loads: list[str]) -> None:
    own = transformers.AutoTokenizer.from_pretrained(str(folder))
    loads.clear()
    for _ in range(2):
        tokenizer = opened(folder)
        assert tokenizer(TEXT)["input_ids"] == own(TEXT)["input_ids"] == [1, 2, 3, 4, 5]
        assert tokenizer.decode([5, 1]) == own.decode([5, 1]) == "horizon two"
    assert len(loads) == 1


def test_another_question_is_asked(folder: Path, loads: list[str]) -> None:
    opened(folder)(TEXT)
    assert opened(folder)("ships")["input_ids"] == [2]
    assert len(loads) == 2


def test_another_tokenizer_is_asked_again(folder: Path) -> None:
    opened(folder)(TEXT)
    write(folder, TEXT.split()[::-1])
    assert opened(folder)(TEXT)["input_ids"] == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("name", ["added_tokens.json", "merges.txt", "tokenizer.model"])
def test_any_file_of_a_tokenizer_counts(folder: Path, name: str, loads: list[str]) -> None:
    opened(folder)(TEXT)
    (folder / name).write_text("{}")
    opened(folder)._answer(["ids", TEXT], lambda: loads.append("asked"))
    assert loads[-1] == "asked"


@pytest.mark.parametrize("package", ["transformers", "tokenizers"])
def test_another_library_is_asked_again(
    folder: Path, package: str, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder)(TEXT)
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda p: "99.0" if p == package else version(p))
    opened(folder)(TEXT)
    assert len(loads) == 2


def test_options_and_trusted_code_are_asked_every_time(folder: Path, loads: list[str]) -> None:
    for _ in range(2):
        assert opened(folder)(TEXT, add_special_tokens=False)["input_ids"] == [1, 2, 3, 4, 5]
        assert opened(folder, trust_remote_code=True)(TEXT)["input_ids"] == [1, 2, 3, 4, 5]
    assert len(loads) == 4


def test_all_else_is_the_tokenizer_s(folder: Path) -> None:
    assert opened(folder).unk_token == "[UNK]"
    assert opened(folder).chat_template is None
    with pytest.raises(AttributeError):
        opened(folder)._private  # noqa: B018


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        opened(tmp_path)(TEXT)
    assert error.value.where == str(tmp_path)
    assert error.value.fix == "add the tokenizer's files, or leave out --prompt"
