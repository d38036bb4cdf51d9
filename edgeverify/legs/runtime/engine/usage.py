"""Compares what the engine feeds and where it stops with the checkpoint's tokenizer."""

from __future__ import annotations

from edgeverify.backends.litert_lm import Answers
from edgeverify.core.results import PASS
from edgeverify.legs.runtime.engine.check import Seen, engine_feed, failed, some, told_token
from edgeverify.legs.runtime.engine.expected import Wanted


def tokenizer(answers: Answers, wanted: Wanted) -> Seen:
    """Checks that every text has the token ids that the checkpoint's tokenizer gives it."""
    for text, given, right in zip(wanted.texts, answers.ids, wanted.ids, strict=True):
        if given != right:
            at = next(
                (i for i, pair in enumerate(zip(given, right, strict=False)) if len({*pair}) > 1),
                min(len(given), len(right)),
            )
            return failed(
                "tokenizer",
                f"{text[:40]!r} is tokenized to {some(given, at)}, expected {some(right, at)}"
                f" from token {at} on",
            )
    return Seen("tokenizer", PASS)


def cache_length(answers: Answers, wanted: Wanted) -> Seen:
    """Checks that the engine takes the smaller of the file's stated length and the cache's rows."""
    told = f"the file says {answers.rows} tokens, its KV cache has {wanted.usage.rows} rows"
    if answers.rows > wanted.usage.rows:
        return failed("cache_length", told)
    return Seen("cache_length", PASS, "" if answers.rows == wanted.usage.rows else told)


def start_token(answers: Answers, wanted: Wanted) -> Seen:
    """Checks that the engine feeds the expected start token before a prompt, once."""
    given = engine_feed(answers, wanted)
    told = f"{len(given)} tokens" if given else "nothing"
    if answers.fed != len(given):
        return failed(
            "start_token", f"{answers.fed} tokens were fed for the prompt, expected {told}"
        )
    if given == wanted.fed or answers.ids[-2] != wanted.prompt_ids:
        return Seen("start_token", PASS)
    right = wanted.fed[: len(wanted.fed) - len(wanted.prompt_ids)]
    return failed(
        "start_token",
        f"the engine puts {told_token(answers.start, wanted)} before a prompt, expected "
        f"{told_token(right[0] if right else None, wanted)}",
    )


def stop_tokens(answers: Answers, wanted: Wanted) -> Seen:
    """Checks that an answer ends at every stop token of the checkpoint, and nowhere else."""
    given, right = set(answers.stops), {(token,) for token in wanted.usage.stops}
    missing = [stop[0] for stop in sorted(right - given)]
    # A sequence that ends with an expected stop token ends an answer where it would end anyway.
    extra = [stop for stop in sorted(given) if (stop[-1:]) not in right]
    if not (missing or extra):
        return Seen("stop_tokens", PASS)
    told = [f"the engine does not stop at {told_token(token, wanted)}" for token in missing]
    for stop in extra:
        sequence = ", ".join(told_token(token, wanted) for token in stop)
        told.append(f"it stops at {sequence}, which ends no answer")
    return failed("stop_tokens", "; ".join(told))


def chat_template(answers: Answers, wanted: Wanted) -> Seen:
    """Checks that a user's message is fed as transformers' chat template puts it.

    The start token is included.
    """
    if wanted.chat is None:
        return Seen("chat_template", PASS, "the tokenizer has none")
    if answers.rendered is None:
        return failed(
            "chat_template", f"the engine cannot apply it ({answers.log or 'it gave nothing'})"
        )
    start = () if answers.start is None else (answers.start,)
    fed = (*start, *wanted.encode(answers.rendered))
    if fed == wanted.chat:
        return Seen("chat_template", PASS)
    if start and start == wanted.chat[:1] and (*start, *wanted.chat) == fed:
        token = told_token(answers.start, wanted)
        return failed(
            "chat_template",
            f"the start token {token} is fed twice: the template has it, and the engine puts it "
            "before",
        )
    return failed(
        "chat_template",
        f"a message becomes {wanted.decode(fed)!r}, expected {wanted.decode(wanted.chat)!r}",
    )
