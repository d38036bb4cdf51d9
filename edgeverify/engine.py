"""The leg ``runtime:litert_lm``: whether LiteRT-LM uses a right file rightly.

The engine is held against two things. What it feeds (token ids, start token, chat template) and
where it stops are held against the checkpoint's tokenizer and configs. What it computes is held
against the LiteRT interpreter's results of the same file, so that it is not charged with what is
wrong in the file. Where an answer differs, the ways of use that could have led to it are tried on
the interpreter, and the one that gives the engine's answer is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeverify import noise
from edgeverify.backends.litert_lm import Answers, Questions
from edgeverify.bundle import Usage, chat_template, rendered
from edgeverify.compare import thresholds
from edgeverify.report.model import FAIL, PASS, UNCHECKED, Finding, LegResult, TapResult
from edgeverify.report.model import worst_outcome as worst
from edgeverify.sessions.session import Session

LEG = "runtime:litert_lm"
STEP = "litert_lm"
MESSAGE = "What is the capital of France?"
# Unicode beyond one byte, runs of spaces, line ends, digits, and nothing but a space.
TEXTS = (
    "The quick brown fox, 12345.",
    "naïve café 日本語 🙂",
    "two  spaces\tand a tab\n\nnew lines \r\n",
    " ",
    "x=3.14; y<-f(x)\n",
)
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
class Wanted:
    """What a right use of the model is, by the checkpoint's own tokenizer.

    Attributes:
        texts: and ``ids``, their token ids without special tokens.
        prompt: a text, and ``fed``, the ids that the model is fed for it.
        target: a text to be scored after it.
        message: of a user, and ``chat``, the ids that the model is fed for it; None: no template.
        usage: start token, stop tokens, cache length.
        decode: token ids → text.
        encode: text → token ids, without special tokens that it does not name.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    prompt: str
    fed: tuple[int, ...]
    target: str
    message: str | None
    chat: tuple[int, ...] | None
    usage: Usage
    decode: Callable[[Sequence[int]], str]
    encode: Callable[[str], tuple[int, ...]]

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Of the prompt, without its start token. It is the last text but one."""
        return self.ids[-2]

    @property
    def target_ids(self) -> tuple[int, ...]:
        """Of the target, which is the last text."""
        return self.ids[-1]

    def questions(self, steps: int) -> Questions:
        """What the engine is to be asked."""
        return Questions(self.texts, self.prompt, steps, self.target, self.message)


def wanted_of(tokenizer: Any, usage: Usage, prompt: Sequence[int], target: Sequence[int]) -> Wanted:
    """What a right use is, of a prompt and what is scored after it.

    Args:
        tokenizer: of transformers.
        usage: of the checkpoint, from ``bundle.usage_of``.
        prompt, target: token ids, special tokens included.
    """

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    plain = list(prompt)
    if tokenizer.bos_token_id is not None and plain[:1] == [tokenizer.bos_token_id]:
        plain = plain[1:]
    told, scored = decode(plain), decode(target)
    specials = "".join(dict.fromkeys(str(token) for token in tokenizer.all_special_tokens))
    texts = (*TEXTS, f"a {specials} b", told, scored)
    message = None if chat_template(tokenizer) is None else MESSAGE
    start = () if usage.start is None else (usage.start,)
    return Wanted(
        texts=texts,
        ids=tuple(encode(text) for text in texts),
        prompt=told,
        fed=(*start, *encode(told)),
        target=scored,
        message=message,
        chat=None if message is None else encode(rendered(tokenizer, message)),
        usage=usage,
        decode=decode,
        encode=encode,
    )


@dataclass(frozen=True)
class Seen:
    """One check: ``pass``, ``fail`` or ``unchecked``, and why."""

    name: str
    outcome: str
    reason: str = ""
    finding: str = ""


def engine_leg(
    answers: Answers,
    wanted: Wanted,
    session: Session,
    floor: float,
    steps: int,
) -> tuple[LegResult, tuple[Finding, ...]]:
    """Judges what the engine said.

    Args:
        answers: from ``backends.litert_lm.ask``.
        wanted: what is right.
        session: the same file in the LiteRT interpreter.
        floor: how far logits of two right runs of the file may be apart, relative, per row.
        steps: tokens of the continuation that was asked for.

    Returns:
        The leg, one tap per check, and one finding for each that is no plain pass.
    """
    limits = thresholds(LEG)
    allowed = _Allowed(floor, limits.row)
    seen = [
        _tokenizer(answers, wanted),
        _cache_length(answers, wanted),
        _start_token(answers, wanted),
        _stop_tokens(answers, wanted),
        _chat_template(answers, wanted),
        _greedy(answers, wanted, session, allowed, steps),
        _scores(answers, wanted, session, allowed),
    ]
    taps = tuple(TapResult(f"{STEP}/{s.name}", s.outcome, reason=s.reason) for s in seen)
    odd = [s for s in seen if s.outcome != PASS]
    outcome = worst([s.outcome for s in seen])
    reason = "; ".join(f"{s.name}: {s.reason}" for s in odd) if outcome == UNCHECKED else ""
    findings = tuple(
        Finding(f"{LEG.replace(':', '.')}.{s.name}", LEG, f"{STEP}/{s.name}", s.finding)
        for s in seen
        if s.finding
    )
    notes = (f"answers {answers.text!r}",)
    return LegResult(LEG, outcome, limits.as_dict(), taps, reason=reason, notes=notes), findings


@dataclass(frozen=True)
class _Allowed:
    """What rounding explains of two logits, or of a log-probability.

    Measured on the seven tiny ports: the engine's log-probabilities are at most 1.3e-6 from those
    of the interpreter's logits, and 0.035 of what is allowed; a fed token that is not the
    prompt's moves them by 1000 times as much as is allowed.
    """

    floor: float
    ratio: float

    def gap(self, logits: np.ndarray) -> float:
        return noise.explained_gap(logits, self.floor, self.ratio)


def _failed(name: str, reason: str) -> Seen:
    return Seen(name, FAIL, reason, f"{name}: {ADVICE[name]}")


def _tokenizer(answers: Answers, wanted: Wanted) -> Seen:
    for text, given, right in zip(wanted.texts, answers.ids, wanted.ids, strict=True):
        if given != right:
            at = next(
                (i for i, pair in enumerate(zip(given, right, strict=False)) if len({*pair}) > 1),
                min(len(given), len(right)),
            )
            return _failed(
                "tokenizer",
                f"{text[:40]!r} is tokenized to {_some(given, at)}, expected {_some(right, at)}"
                f" from token {at} on",
            )
    return Seen("tokenizer", PASS)


def _some(ids: Sequence[int], start: int) -> str:
    shown = [str(token) for token in ids[start : start + 4]]
    return "[" + ", ".join([*shown, *(["…"] if len(ids) > start + 4 else [])]) + "]"


def _cache_length(answers: Answers, wanted: Wanted) -> Seen:
    """The engine takes the lesser of what the file says and the cache's rows."""
    told = f"the file says {answers.rows} tokens, its KV cache has {wanted.usage.rows} rows"
    if answers.rows > wanted.usage.rows:
        return _failed("cache_length", told)
    return Seen("cache_length", PASS, "" if answers.rows == wanted.usage.rows else told)


def _start_token(answers: Answers, wanted: Wanted) -> Seen:
    given = _engine_feed(answers, wanted)
    told = f"{len(given)} tokens" if given else "nothing"
    if answers.fed != len(given):
        return _failed(
            "start_token", f"{answers.fed} tokens were fed for the prompt, expected {told}"
        )
    if given == wanted.fed or answers.ids[-2] != wanted.prompt_ids:
        return Seen("start_token", PASS)
    right = wanted.fed[: len(wanted.fed) - len(wanted.prompt_ids)]
    return _failed(
        "start_token",
        f"the engine puts {_token(answers.start, wanted)} before a prompt, expected "
        f"{_token(right[0] if right else None, wanted)}",
    )


def _engine_feed(answers: Answers, wanted: Wanted) -> tuple[int, ...]:
    """What the engine feeds for the prompt, by its own account."""
    start = () if answers.start is None else (answers.start,)
    return (*start, *answers.ids[-2])


def _token(token: int | None, wanted: Wanted) -> str:
    return "nothing" if token is None else f"{token} ({wanted.decode([token])!r})"


def _stop_tokens(answers: Answers, wanted: Wanted) -> Seen:
    given, right = set(answers.stops), {(token,) for token in wanted.usage.stops}
    missing = [stop[0] for stop in sorted(right - given)]
    # A sequence that ends with a right stop token ends an answer where it would end anyway.
    extra = [stop for stop in sorted(given) if (stop[-1:]) not in right]
    if not (missing or extra):
        return Seen("stop_tokens", PASS)
    told = [f"the engine does not stop at {_token(token, wanted)}" for token in missing]
    told += [
        f"it stops at {', '.join(_token(token, wanted) for token in stop)}, which ends no answer"
        for stop in extra
    ]
    return _failed("stop_tokens", "; ".join(told))


def _chat_template(answers: Answers, wanted: Wanted) -> Seen:
    if wanted.chat is None:
        return Seen("chat_template", PASS, "the tokenizer has none")
    if answers.rendered is None:
        return _failed(
            "chat_template", f"the engine cannot apply it ({answers.log or 'it gave nothing'})"
        )
    start = () if answers.start is None else (answers.start,)
    fed = (*start, *wanted.encode(answers.rendered))
    if fed == wanted.chat:
        return Seen("chat_template", PASS)
    if len(start) and (*start, *wanted.chat) == fed:
        return _failed(
            "chat_template",
            f"the start token {_token(answers.start, wanted)} is fed twice: the template has it, "
            "and the engine puts it before",
        )
    return _failed(
        "chat_template",
        f"a message becomes {wanted.decode(fed)!r}, expected {wanted.decode(wanted.chat)!r}",
    )


def _greedy(
    answers: Answers, wanted: Wanted, session: Session, allowed: _Allowed, steps: int
) -> Seen:
    tokens, rows = continuation(session, wanted.fed, steps)
    agreed = _agreement(answers, wanted, tokens, rows, allowed)
    if agreed is not None:
        return Seen("greedy", PASS, agreed)
    at = _common(answers.text, wanted, tokens)
    told = (
        f"the engine continues with {answers.text!r}, the file with {wanted.decode(tokens)!r}: "
        f"another token at {at}, and no near tie"
    )
    for manner, fed in _other_feeds(answers, wanted):
        tried, its_rows = continuation(session, fed, steps)
        if _agreement(answers, wanted, tried, its_rows, allowed) is not None:
            return _failed("greedy", f"{told}; it is the file's answer to {manner}")
    return _failed("greedy", told)


def _other_feeds(answers: Answers, wanted: Wanted) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Wrong ways to feed the prompt that are no fault of the graph."""
    plain = wanted.prompt_ids
    right = wanted.fed[: len(wanted.fed) - len(plain)]
    if right:
        yield f"the prompt without its start token {_token(right[0], wanted)}", plain
        yield "the prompt with its start token twice", (*right, *wanted.fed)
    elif answers.start is not None:
        start = _token(answers.start, wanted)
        yield f"the prompt with {start} before it", (answers.start, *plain)
    own = _engine_feed(answers, wanted)
    yield f"what the engine says that it fed, {_some(own, 0)}", own


def _agreement(
    answers: Answers, wanted: Wanted, tokens: list[int], rows: np.ndarray, allowed: _Allowed
) -> str | None:
    """A remark on how the engine's text is the file's, or None where it is not."""
    stops = {stop[0] for stop in answers.stops if len(stop) == 1}
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    texts = {wanted.decode(tokens[:end]), wanted.decode(tokens[: end + 1])}
    if answers.text in texts:
        return ""
    at = _common(answers.text, wanted, tokens)
    if at >= end:
        return None
    gaps = rows[at, tokens[at]] - rows[at]
    near = np.flatnonzero(gaps <= allowed.gap(rows[at]))
    for token in near:
        if token != tokens[at] and _begins(answers.text, wanted.decode([*tokens[:at], int(token)])):
            return f"compared up to token {at}, a near tie"
    return None


def _common(text: str, wanted: Wanted, tokens: Sequence[int]) -> int:
    """How many of the tokens the text begins with."""
    return next(
        (i for i in range(len(tokens)) if not _begins(text, wanted.decode(tokens[: i + 1]))),
        len(tokens),
    )


def _begins(text: str, beginning: str) -> bool:
    """``text`` begins so, but for the bytes of a character that is not whole yet."""
    return text.startswith(beginning.rstrip("\N{REPLACEMENT CHARACTER}"))


def _scores(answers: Answers, wanted: Wanted, session: Session, allowed: _Allowed) -> Seen:
    fed, target = _engine_feed(answers, wanted), wanted.target_ids
    if answers.ids[-1] != target or len(answers.scores) != len(target):
        return Seen(
            "scores", UNCHECKED, "the target is tokenized otherwise, so there is nothing to compare"
        )
    plain = follow(session, fed, [*target[:-1]])
    off = _furthest(answers.scores, plain, target, allowed)
    if off is None:
        return Seen("scores", PASS)
    # LiteRT-LM issue 3561: after a prefill, scoring steps back twice, so that the prompt's last
    # token is fed once more in the place of the one before it.
    back = follow(session, fed, [fed[-1], *target[:-1]], rewind=2)[1:] if len(fed) > 1 else plain
    if len(fed) > 1 and _furthest(answers.scores, back, target, allowed) is None:
        told = (
            "text scoring feeds the prompt's last token once more, one position early (LiteRT-LM "
            "issue 3561), so its scores are not the model's: "
            f"{off}; with that step they are the file's"
        )
        return Seen("scores", PASS, told, f"scores: {told}. {ADVICE['scores'].capitalize()}.")
    return _failed("scores", off)


def _furthest(
    scores: Sequence[float], rows: np.ndarray, target: Sequence[int], allowed: _Allowed
) -> str | None:
    """The score that is furthest off, told, or None where all are explained by rounding."""
    right = np.array([log_probability(row, token) for row, token in zip(rows, target, strict=True)])
    excess = np.abs(np.array(scores) - right)
    permitted = np.array([allowed.gap(row) for row in rows])
    at = int((excess / permitted).argmax())
    if excess[at] <= permitted[at]:
        return None
    return (
        f"token {at} of the target has {scores[at]:.4f}, the file gives {right[at]:.4f}; rounding "
        f"explains {permitted[at]:.2g}"
    )


def log_probability(logits: np.ndarray, token: int) -> float:
    """Of one token; logits (V,), the sum in float64."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return float(shifted[token] - np.log(np.exp(shifted).sum()))


def continuation(session: Session, fed: Sequence[int], steps: int) -> tuple[list[int], np.ndarray]:
    """The file's own greedy continuation, and the logits that chose it, (steps, V)."""
    rows = [_prompted(session, fed)]
    tokens = [int(rows[0].argmax())]
    while len(tokens) < steps:
        rows.append(session.decode(tokens[-1]))
        tokens.append(int(rows[-1].argmax()))
    return tokens, np.array(rows)


def follow(
    session: Session, fed: Sequence[int], tokens: Sequence[int], *, rewind: int = 0
) -> np.ndarray:
    """Logits after the prompt and after each further token, (1 + tokens, V).

    Args:
        session: a file.
        fed: the prompt.
        tokens: what follows.
        rewind: how many positions to step back after the prompt.
    """
    rows = [_prompted(session, fed)]
    session.rewind(session.position - rewind)
    return np.array([*rows, *(session.decode(token) for token in tokens)])


def _prompted(session: Session, fed: Sequence[int]) -> np.ndarray:
    """Feeds a prompt into an empty cache; the logits of its last token, (V,).

    Its last token is decoded, as the engine does: not every file's prefill returns logits.
    """
    session.reset()
    pending = list(fed[:-1])
    while pending:
        length = next((n for n in session.lengths if n >= len(pending)), session.lengths[-1])
        if session.position + length > session.rows:
            session.decode(pending.pop(0))
            continue
        session.prefill(pending[:length], length=length)
        del pending[:length]
    return session.decode(fed[-1])
