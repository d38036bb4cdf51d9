"""The result of one check of the engine, and advice for a failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeverify.backends.litert_lm import Answers
from edgeverify.core.results import FAIL
from edgeverify.legs.runtime.engine.expected import Wanted

ADVICE = {
    "tokenizer": "bundle the checkpoint's own tokenizer",
    "cache_length": "set max_num_tokens of the file's metadata to the rows of its KV cache",
    "start_token": "correct start_token of the file's metadata: it is put before every prompt",
    "stop_tokens": "correct stop_tokens of the file's metadata",
    "chat_template": "correct jinja_prompt_template of the file's metadata, or its start_token",
    "greedy": "the engine runs the same graph: look at what it is fed, by the checks above",
    "scores": "the engine's text scoring alone is concerned, not what it generates",
}


@dataclass(frozen=True)
class Seen:
    """The result of one check.

    Attributes:
        name: a key of ``ADVICE``.
        outcome: ``pass``, ``fail`` or ``unchecked``.
        reason: why, or a remark on a pass.
        finding: what a person should read besides the reason, or "".
    """

    name: str
    outcome: str
    reason: str = ""
    finding: str = ""


def failed(name: str, reason: str) -> Seen:
    """Returns a failure with advice on what to do about it."""
    return Seen(name, FAIL, reason, f"{name}: {ADVICE[name]}")


def some(ids: Sequence[int], start: int) -> str:
    """A few token ids from ``start`` on, e.g. ``[74, 83, 92, 16, …]``."""
    shown = [str(token) for token in ids[start : start + 4]]
    return "[" + ", ".join([*shown, *(["…"] if len(ids) > start + 4 else [])]) + "]"


def engine_feed(answers: Answers, wanted: Wanted) -> tuple[int, ...]:
    """The tokens that the engine feeds for the prompt, according to its own answers."""
    start = () if answers.start is None else (answers.start,)
    return (*start, *answers.ids[-2])


def told_token(token: int | None, wanted: Wanted) -> str:
    """A token id with its text, e.g. ``1 ('<s>')``; ``nothing`` for None."""
    return "nothing" if token is None else f"{token} ({wanted.decode([token])!r})"
