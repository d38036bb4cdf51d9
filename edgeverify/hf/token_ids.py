"""The ids of a text: the one place where a text becomes tokens that a model has rows for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeverify.core.errors import UsageError


def ids_of(tokenizer: Any, text: str, rows: int, where: str) -> list[int]:
    """Returns the ids of a text, each of which has a row in the embedding table.

    Args:
        tokenizer: transformers' tokenizer, or one that answers like it.
        text: any text.
        rows: the rows of the model's embedding table.
        where: which text this is, for messages, e.g. ``--prompt``.

    Raises:
        UsageError: the table has no row for a token, or the text is no Unicode.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # What a shell passes on that is not UTF-8 arrives as such halves of characters.
        raise UsageError(
            f"character {error.start} is {text[error.start]!a}, half of a pair, and no character",
            where=where,
            expected="text in UTF-8",
            fix="write the text in UTF-8",
        ) from error
    ids = [int(token) for token in tokenizer(text)["input_ids"]]
    beyond = [token for token in ids if not 0 <= token < rows]
    if beyond:
        raise UsageError(
            f"token {_name(tokenizer, beyond[0])} has the id {beyond[0]}, but the model's "
            f"embedding table has {rows} rows",
            where=where,
            expected=f"ids below {rows}",
            fix="take the tokenizer that belongs to this model, or a text without that token",
        )
    return ids


def remarks(tokenizer: Any, ids: Sequence[int], rows: int) -> list[str]:
    """Says what is odd about a tokenizer and the first ids of a text, and decides nothing.

    Args:
        tokenizer: as for ``ids_of``.
        ids: the ids that are run.
        rows: the rows of the model's embedding table.
    """
    found = []
    size = len(tokenizer)
    if size > rows:
        found.append(
            f"its tokenizer has {size} ids, {size - rows} more than the embedding table has rows"
        )
    start = tokenizer.bos_token_id
    if start is not None and list(ids[:2]) == [start, start]:
        found.append(
            f"the prompt begins with the start token {_name(tokenizer, start)} twice: the "
            "tokenizer puts one before the prompt's own"
        )
    return found


def _name(tokenizer: Any, token: int) -> str:
    return repr(tokenizer.decode([token]))
