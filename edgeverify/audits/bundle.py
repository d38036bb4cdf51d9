"""Audits a .litertlm against its checkpoint: how the engine will use the model.

A right graph in a wrong container answers wrongly: it does not stop, it begins with two start
tokens, it was given the base model's tokenizer. Each field is held against what transformers does
with the checkpoint: the ids that its tokenizer gives, the text that its chat template renders, the
tokens at which it stops. Nothing here is shared with the code that writes bundles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edgeverify.core.results import BUNDLE, FAIL, PASS, UNCHECKED, AuditResult, Check
from edgeverify.litert.bundle.rendering import TURNS, Conversation, render

TEXTS = (
    "The quick brown fox, 12345.",
    "naïve café 日本語 🙂",
    "two  spaces\tand a tab\n\nnew lines \r\n",
    " x=3.14; y<-f(x)\n",
)
GENERIC = "generic_model"
START = "start token"
# Model types of the engine that change how it builds prompts → ``model_type`` of their checkpoints.
FAMILIES = {
    "gemma3": ("gemma3", "gemma3_text"),
    "gemma3n": ("gemma3n", "gemma3n_text"),
    "function_gemma": ("gemma3", "gemma3_text"),
    "gemma4": ("gemma4", "gemma4_text"),
    "qwen3": ("qwen3",),
    "qwen2p5": ("qwen2",),
    "lfm2": ("lfm2",),
}


@dataclass(frozen=True)
class Held:
    """What a container says.

    Attributes:
        metadata: the engine's metadata, from ``Bundle.metadata``.
        encode: a text → the ids that its own tokenizer gives, without special tokens put before;
            None if it cannot be read.
        vocabulary: its own tokenizer's tokens → ids; None likewise.
        why_not: why its tokenizer cannot be read.
    """

    metadata: Mapping[str, Any]
    encode: Callable[[str], list[int]] | None = None
    vocabulary: Mapping[str, int] | None = None
    why_not: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """What the checkpoint says about its use.

    Attributes:
        tokenizer: transformers' tokenizer; None if the checkpoint has none.
        hf_config: its ``config.json``.
        generation: its ``generation_config.json``; empty if there is none.
        rows: the rows of the file's KV cache.
    """

    tokenizer: Any
    hf_config: Mapping[str, Any]
    generation: Mapping[str, Any]
    rows: int


def audit_bundle(held: Held, checkpoint: Checkpoint) -> AuditResult:
    """Compares each field of a container with the checkpoint.

    Args:
        held: what the container says.
        checkpoint: what it is to say.
    """
    checks = [*_length(held, checkpoint), *_model_type(held, checkpoint)]
    if checkpoint.tokenizer is None:
        reason = "the checkpoint has no tokenizer to hold it against"
        for item in ("tokenizer", "stop tokens", START, "chat template"):
            checks.append(Check(item, "container", UNCHECKED, reason=reason))
        return AuditResult(BUNDLE, tuple(checks))
    checks += _tokenizer(held, checkpoint)
    checks += _stops(held, checkpoint)
    checks += _prompts(held, checkpoint)
    return AuditResult(BUNDLE, tuple(checks))


def _check(item: str, expected: object, found: object, reason: str = "") -> Check:
    outcome = PASS if expected == found else FAIL
    return Check(item, "container", outcome, str(expected), str(found), reason)


def _length(held: Held, checkpoint: Checkpoint) -> Iterator[Check]:
    told = held.metadata.get("max_num_tokens", 0)
    wanted = f"at most {checkpoint.rows}"
    if not told:
        reason = "the engine then takes a length of its own"
        yield Check("max_num_tokens", "container", UNCHECKED, wanted, "nothing", reason)
    elif told > checkpoint.rows:
        reason = "the KV cache has no more rows"
        yield Check("max_num_tokens", "container", FAIL, wanted, str(told), reason)
    else:
        yield Check("max_num_tokens", "container", PASS, wanted, str(told))


def _model_type(held: Held, checkpoint: Checkpoint) -> Iterator[Check]:
    found = next(iter(held.metadata.get("llm_model_type", {})), GENERIC)
    family = str(checkpoint.hf_config.get("model_type"))
    if found == GENERIC or family in FAMILIES.get(found, ()):
        yield Check("model type", "container", PASS, found, found)
    elif found in FAMILIES:
        wanted = next((k for k, types in FAMILIES.items() if family in types), GENERIC)
        yield Check("model type", "container", FAIL, wanted, found, f"the model is a {family}")
    else:
        reason = "what the engine does for this type is not known here"
        yield Check("model type", "container", UNCHECKED, GENERIC, found, reason)


def _encode(tokenizer: Any) -> Callable[[str], list[int]]:
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _tokenizer(held: Held, checkpoint: Checkpoint) -> Iterator[Check]:
    if held.encode is None or held.vocabulary is None:
        yield Check("tokenizer", "container", UNCHECKED, reason=held.why_not)
        return
    wanted = dict(checkpoint.tokenizer.get_vocab())
    found = dict(held.vocabulary)
    if wanted != found:
        told = _other_words(wanted, found)
        yield Check("tokenizer's vocabulary", "container", FAIL, f"{len(wanted)} tokens", told)
    else:
        size = f"{len(wanted)} tokens"
        yield Check("tokenizer's vocabulary", "container", PASS, size, size)
    specials = "".join(map(str, checkpoint.tokenizer.all_special_tokens))
    encode = _encode(checkpoint.tokenizer)
    for text in (*TEXTS, f"a {specials} b"):
        right, given = encode(text), held.encode(text)
        if right != given:
            yield Check("tokenizer", "container", FAIL, str(right), str(given), f"of {text!r}")
            return
    yield Check("tokenizer", "container", PASS, "the checkpoint's ids", "the checkpoint's ids")


def _other_words(wanted: Mapping[str, int], found: Mapping[str, int]) -> str:
    odd = [word for word in {**wanted, **found} if wanted.get(word) != found.get(word)]
    word = min(odd, key=lambda one: wanted.get(one, found.get(one, 0)))
    return (
        f"{len(found)} tokens, {len(odd)} of them otherwise, e.g. {word!r} is "
        f"{found.get(word, 'no token')}, not {wanted.get(word, 'a token at all')}"
    )


def _ids(value: Any) -> set[int]:
    if value is None:
        return set()
    return {int(value)} if isinstance(value, int) else {int(token) for token in value}


def _stops(held: Held, checkpoint: Checkpoint) -> Iterator[Check]:
    """Holds the stop tokens against those at which transformers' ``generate`` ends an answer.

    These are the generation config's or, without one, the config's. The tokenizer's own end token
    may be added: a model that writes it has ended its answer, too.
    """
    tokenizer = checkpoint.tokenizer
    generation = _ids(checkpoint.generation.get("eos_token_id"))
    config = _ids(checkpoint.hf_config.get("eos_token_id"))
    needed = generation or config or _ids(tokenizer.eos_token_id)
    allowed = needed | config | _ids(tokenizer.eos_token_id)
    found, sequences = _found_stops(held, tokenizer)
    name = lambda ids: ", ".join(f"{i} {tokenizer.decode([i])!r}" for i in sorted(ids)) or "none"  # noqa: E731
    missing, extra = needed - found, found - allowed
    if missing or extra:
        told = [f"{name(missing)} missing"] if missing else []
        told += [f"{name(extra)} ends no answer"] if extra else []
        yield Check("stop tokens", "container", FAIL, name(needed), name(found), "; ".join(told))
    else:
        yield Check("stop tokens", "container", PASS, name(needed), name(found))
    rows = int(checkpoint.hf_config["vocab_size"])
    if beyond := {token for token in needed | found if token >= rows}:
        reason = f"the embedding table has {rows} rows, so the model never writes it"
        yield Check("stop tokens", "container", UNCHECKED, name(needed), str(beyond), reason)
    if sequences:
        reason = "stops at more than one token are not held against anything"
        yield Check("stop tokens", "container", UNCHECKED, "", str(sequences), reason)
    strings = checkpoint.generation.get("stop_strings")
    for text in [strings] if isinstance(strings, str) else strings or ():
        ids = _encode(tokenizer)(text)
        if len(ids) != 1 or ids[0] not in found:
            reason = "transformers stops at this text; the container has no stop token for it"
            yield Check("stop strings", "container", UNCHECKED, repr(text), "nothing", reason)


def _found_stops(held: Held, tokenizer: Any) -> tuple[set[int], list[list[int]]]:
    found, sequences = set(), []
    for stop in held.metadata.get("stop_tokens", []):
        ids = list(stop.get("token_ids", {}).get("ids", []))
        if not ids and "token_str" in stop:
            ids = _encode(tokenizer)(stop["token_str"])
        if len(ids) == 1:
            found.add(ids[0])
        else:
            sequences.append(ids)
    return found, sequences


def _start(held: Held, tokenizer: Any) -> list[int]:
    start = held.metadata.get("start_token", {})
    ids = list(start.get("token_ids", {}).get("ids", []))
    if not ids and "token_str" in start:
        ids = _encode(tokenizer)(start["token_str"])
    return ids


def _prompts(held: Held, checkpoint: Checkpoint) -> Iterator[Check]:
    """Holds conversations, start token included, against those that transformers renders."""
    tokenizer = checkpoint.tokenizer
    encode = _encode(tokenizer)
    start = _start(held, tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        right = list(tokenizer(TEXTS[0])["input_ids"])
        plain = encode(TEXTS[0])
        wanted = right[: len(right) - len(plain)] if right[-len(plain) :] == plain else []
        yield _check(START, wanted or "none", start or "none")
        if _template(held) is None:
            yield Check("chat template", "container", PASS, "none", "none")
        else:
            reason = "the checkpoint has none to hold it against"
            yield Check("chat template", "container", UNCHECKED, "none", "one", reason)
        return
    for turns, conversation in TURNS.items():
        try:
            right = encode(_rendered(tokenizer, conversation))
        except Exception:
            continue
        try:
            text = render(_template(held), held.metadata, conversation)
        except Exception as error:
            reason = f"it cannot be rendered: {type(error).__name__}: {error}"
            yield Check(f"chat template, {turns}", "container", UNCHECKED, reason=reason)
            continue
        check = _prompt(turns, right, [*start, *encode(text)], tokenizer)
        yield check
        if check.item == START:
            break  # every conversation begins so
    yield from _growing(held)


def _rendered(tokenizer: Any, conversation: Conversation) -> str:
    messages = [dict(message) for message in conversation]
    found: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return found


def _template(held: Held) -> str | None:
    return held.metadata.get("jinja_prompt_template") or None


def _prompt(turns: str, right: Sequence[int], given: Sequence[int], tokenizer: Any) -> Check:
    """Judges what is fed for a conversation; names the start token where that alone is wrong."""
    right, given = list(right), list(given)
    bos = tokenizer.bos_token_id
    if bos is not None and right != given:
        counts = [_leading(ids, bos) for ids in (right, given)]
        if right[counts[0] :] == given[counts[1] :]:
            expected, found = (f"{tokenizer.decode([bos])!r} {_times(n)}" for n in counts)
            return Check(START, "container", FAIL, expected, found)
    item = f"chat template, {turns}"
    if right == given:
        return Check(item, "container", PASS, f"{len(right)} tokens", f"{len(given)} tokens")
    at = next((i for i, pair in enumerate(zip(right, given, strict=False)) if len({*pair}) > 1), -1)
    begin = max(0, min(at if at >= 0 else len(right), len(given)) - 4)
    expected, found = (repr(tokenizer.decode(ids[begin : begin + 12])) for ids in (right, given))
    return Check(item, "container", FAIL, expected, found, f"from token {begin} on")


def _leading(ids: Sequence[int], token: int) -> int:
    return next((i for i, found in enumerate(ids) if found != token), len(ids))


def _times(count: int) -> str:
    return {0: "not at all", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _growing(held: Held) -> Iterator[Check]:
    """Checks that a conversation's text begins with the text of its first turns.

    LiteRT-LM feeds only what a new turn adds, and refuses a turn where that is not so ("new
    rendered template string does not start with the previous rendered template string").
    """
    template = _template(held)
    if template is None:
        return
    item = "chat template, turn by turn"
    whole = TURNS["three turns"]
    try:
        texts = [render(template, held.metadata, whole[:n], ask=False) for n in (1, 2, 3)]
    except Exception as error:
        reason = f"it cannot be rendered: {type(error).__name__}: {error}"
        yield Check(item, "container", UNCHECKED, reason=reason)
        return
    if all(later.startswith(before) for before, later in pairwise(texts)):
        yield Check(item, "container", PASS, "each turn is added", "each turn is added")
    else:
        reason = "an earlier turn is rendered otherwise once it is not the last: LiteRT-LM refuses"
        yield Check(item, "container", FAIL, "each turn is added", "another beginning", reason)
