"""The shipped text, and windows that predict each token once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeverify.core.errors import UsageError
from edgeverify.suites.quality.text import Stream, load_stream, windows

CONFIG = {"vocab_size": 9000}
SMALL = {"vocab_size": 50}


class Characters:
    """A tokenizer of characters that may begin or end a text with a token of its own."""

    bos_token_id, eos_token_id = 1, 2

    def __init__(self, *, start: bool = False, end: bool = False) -> None:
        self.start, self.end = start, end

    def __call__(self, text: str) -> dict[str, list[int]]:
        ids = [ord(character) for character in text]
        return {"input_ids": [1] * self.start + ids + [2] * self.end}


def test_the_shipped_text_is_a_few_thousand_tokens_of_several_kinds() -> None:
    stream = load_stream(Characters(), CONFIG)
    text = "".join(map(chr, stream.tokens))
    assert 12_000 < len(text) < 20_000
    for sign in ("def ", "SELECT", "°C", "ä", "é", "ó", "?", "18,500"):
        assert sign in text
    assert stream.description.startswith("edgeverify's own text, ")


@pytest.mark.parametrize("length", [4, 5, 64])
def test_each_token_but_the_first_is_predicted_once_from_those_before_it(length: int) -> None:
    stream = Stream(tuple(range(100, 113)), None, "")
    cut = list(windows(stream, length))
    assert [t for window in cut for t in window.targets] == list(range(101, 113))
    for window in cut:
        assert [token + 1 for token in window.tokens] == list(window.targets)
        assert len(window.tokens) <= length
    assert stream.positions == 12


def test_a_start_token_begins_every_window_and_the_first_token_is_predicted_too() -> None:
    stream = Stream((10, 11, 12, 13, 14), 1, "")
    cut = list(windows(stream, 3))
    assert [window.tokens for window in cut] == [(1, 10, 11), (1, 13)]
    assert [window.targets for window in cut] == [(10, 11, 12), (13, 14)]
    assert stream.positions == 5


def test_the_tokenizers_own_start_and_end_tokens_are_taken_off() -> None:
    stream = load_stream(Characters(start=True, end=True), CONFIG)
    assert stream.start == 1
    assert 1 not in stream.tokens
    assert 2 not in stream.tokens
    assert load_stream(Characters(), CONFIG).start is None


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("grün", encoding="utf-8")
    assert load_stream(Characters(), CONFIG, file=path).tokens == tuple(map(ord, "grün"))
    assert load_stream(Characters(), CONFIG, file=path, limit=3).tokens == tuple(map(ord, "grü"))


def test_without_a_tokenizer_ids_are_drawn_and_this_is_told() -> None:
    stream = load_stream(None, SMALL, limit=200, seed=3)
    assert stream == load_stream(None, SMALL, limit=200, seed=3)
    assert stream.tokens != load_stream(None, SMALL, limit=200, seed=4).tokens
    assert set(stream.tokens) <= set(range(50))
    assert stream.description == "200 token ids drawn with seed 3 (there is no tokenizer)"


def told(**given: Any) -> str:
    tokenizer = given.pop("tokenizer", Characters())
    with pytest.raises(UsageError) as error:
        load_stream(tokenizer, CONFIG, **given)
    return str(error.value)


def test_what_cannot_be_scored_is_told_in_one_line(tmp_path: Path) -> None:
    short, odd = tmp_path / "short.txt", tmp_path / "odd.txt"
    short.write_text("a")
    odd.write_bytes(b"\xff\xfe\xfa")
    assert told(file=short) == (
        f"--text {short}: 1 tokens are too few; expected at least 2; take a longer text"
    )
    assert told(file=odd) == (
        f"--text {odd}: cannot be read (it is no UTF-8 text); expected a UTF-8 text file"
    )
    assert told(tokenizer=None, file=short) == (
        "--text: a text needs a tokenizer; expected a --checkpoint that has one; "
        "give the checkpoint's directory, or leave out --text"
    )
