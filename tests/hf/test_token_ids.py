"""A text's ids have rows in the embedding table, wherever the text comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeverify.core.errors import UsageError
from edgeverify.hf.token_ids import ids_of, remarks
from edgeverify.legs import inputs
from edgeverify.legs.selectors import Selectors
from edgeverify.suites.quality.text import load_stream

ROWS = 300


class Codes:
    """A tokenizer whose ids are characters' codes, with a start token before each text."""

    def __init__(self, size: int = ROWS, start: int | None = 1) -> None:
        self.size, self.bos_token_id, self.eos_token_id = size, start, None

    def __len__(self) -> int:
        return self.size

    def __call__(self, text: str) -> dict[str, list[int]]:
        first = [] if self.bos_token_id is None else [self.bos_token_id]
        return {"input_ids": first + [ord(sign) for sign in text]}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


@given(st.text(max_size=20), st.integers(2, 400))
def test_every_id_has_a_row_or_the_first_that_has_none_is_named(text: str, rows: int) -> None:
    beyond = [sign for sign in text if ord(sign) >= rows]
    if not beyond:
        assert ids_of(Codes(), text, rows, "--prompt") == [1, *map(ord, text)]
        return
    with pytest.raises(UsageError) as caught:
        ids_of(Codes(), text, rows, "--prompt")
    message = str(caught.value)
    assert f"token {beyond[0]!r} has the id {ord(beyond[0])}, but" in message
    assert f"table has {rows} rows; expected ids below {rows}" in message


def test_a_prompt_and_our_own_prose_are_looked_at() -> None:
    hf_config = {"vocab_size": ROWS}
    with pytest.raises(UsageError, match=r"^--prompt: token 'Ж' has the id 1046"):
        inputs.tokens(hf_config, Codes(), Selectors.of(prompt="aЖ"), 9)
    with pytest.raises(UsageError, match=r"tokenizer, on edgeverify's own text: token"):
        inputs.tokens({"vocab_size": 40}, Codes(), Selectors.of(), 9)


def test_a_text_to_be_evaluated_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("plain words, and then Ж")
    with pytest.raises(UsageError, match=r"^--text .*text\.txt: token 'Ж' has the id 1046"):
        load_stream(Codes(), {"vocab_size": ROWS}, file=file)


@pytest.mark.parametrize(
    ("tokenizer", "ids", "told"),
    [
        (Codes(), [1, 65, 66], []),
        (Codes(), [1], []),
        (Codes(start=None), [65, 65], []),
        (Codes(), [1, 1, 65], ["begins with the start token '\\x01' twice"]),
        (Codes(size=302), [1, 65], ["has 302 ids, 2 more than the embedding table has rows"]),
        (Codes(size=250), [1, 65], []),
    ],
)
def test_what_is_odd_is_told(tokenizer: Any, ids: list[int], told: list[str]) -> None:
    found = remarks(tokenizer, ids, ROWS)
    assert len(found) == len(told)
    assert all(part in text for part, text in zip(told, found, strict=True))
