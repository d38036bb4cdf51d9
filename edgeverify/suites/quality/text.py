"""The text that a model is scored on, cut into windows.

Each window is one prefill from an empty cache. If the tokenizer begins a text with a start token,
every window begins with it, as every prompt on the device does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from edgeverify.core.errors import UsageError
from edgeverify.hf.token_ids import ids_of

# 3,687 tokens of SmolLM2's tokenizer: prose, dialogue, code, numbers, four languages. Written for
# this package and given to the public domain (CC0 1.0).
SHIPPED = "text.txt"
RANDOM_TOKENS = 1025  # 16 blocks of the bootstrap


@dataclass(frozen=True)
class Stream:
    """The token ids of a text.

    Attributes:
        tokens: in order, without a start token.
        start: the token that begins every window, if the tokenizer has one.
        description: where they come from, as the report shows it.
    """

    tokens: tuple[int, ...]
    start: int | None
    description: str

    @property
    def positions(self) -> int:
        """How many next tokens are predicted: all, except a first one with no token before it."""
        return len(self.tokens) - (self.start is None)


@dataclass(frozen=True)
class Window:
    """One prefill.

    Attributes:
        index: from 0.
        tokens: the input, at most the window's length.
        targets: the next token after each of ``tokens``.
    """

    index: int
    tokens: tuple[int, ...]
    targets: tuple[int, ...]


def windows(stream: Stream, length: int) -> Iterator[Window]:
    """Cuts a stream so that each token is predicted once; the last window may be shorter.

    Args:
        stream: at least two tokens.
        length: tokens in a window.
    """
    ids = stream.tokens
    first = 0 if stream.start is not None else 1
    for index, begin in enumerate(range(first, len(ids), length)):
        targets = ids[begin : begin + length]
        fed = ids[max(begin - 1, 0) : begin + len(targets) - 1]
        if stream.start is not None:
            fed = (stream.start, *ids[begin : begin + len(targets) - 1])
        yield Window(index, fed, targets)


def load_stream(
    tokenizer: Any | None,
    hf_config: Mapping[str, Any],
    *,
    file: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Stream:
    """Returns the tokens of ``file``, else of the shipped text, else drawn ids.

    Args:
        tokenizer: the checkpoint's; without one, ids are drawn with ``seed``.
        hf_config: gives ``vocab_size``.
        file: a text of the user's own, UTF-8.
        limit: take at most this many tokens.
        seed: seeds the drawn ids.

    Raises:
        UsageError: the file cannot be read, has fewer than two tokens, or has no tokenizer.
    """
    if tokenizer is None:
        if file is not None:
            raise UsageError(
                "a text needs a tokenizer",
                where="--text",
                expected="a --checkpoint that has one",
                fix="give the checkpoint's directory, or leave out --text",
            )
        count = limit or RANDOM_TOKENS
        drawn = np.random.default_rng(seed).integers(0, int(hf_config["vocab_size"]), count)
        told = f"{count} token ids drawn with seed {seed} (there is no tokenizer)"
        return Stream(tuple(int(token) for token in drawn), None, told)
    text = _read(file)
    where = "edgeverify's own text" if file is None else f"--text {file}"
    ids = ids_of(tokenizer, text, int(hf_config["vocab_size"]), where)
    start = tokenizer.bos_token_id
    if start is None or not ids or ids[0] != start:
        start = None
    else:
        ids = ids[1:]
    ids = _without_end(ids, tokenizer.eos_token_id)[:limit]
    if len(ids) < 2:
        raise UsageError(
            f"{len(ids)} tokens are too few",
            where=f"--text {file}" if limit is None or limit > 1 else "--tokens",
            expected="at least 2",
            fix="take a longer text",
        )
    name = "edgeverify's own text" if file is None else str(file)
    return Stream(tuple(ids), start, f"{name}, {len(ids)} tokens")


def _without_end(ids: list[int], end: int | None) -> list[int]:
    """Removes the end token that some tokenizers append."""
    return ids[:-1] if ids and ids[-1] == end else ids


def _read(file: Path | None) -> str:
    if file is None:
        return resources.files("edgeverify.suites.quality").joinpath(SHIPPED).read_text("utf-8")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UsageError(
            f"cannot be read ({reason})", where=f"--text {file}", expected="a UTF-8 text file"
        ) from error
