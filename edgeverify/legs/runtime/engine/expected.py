"""How a model should be used, according to the checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeverify.backends.litert_lm import Questions
from edgeverify.litert.bundle.writer import Usage, chat_template, rendered

MESSAGE = "What is the capital of France?"
# Unicode beyond one byte, runs of spaces, line ends, digits, and a text of only a space.
TEXTS = (
    "The quick brown fox, 12345.",
    "naïve café 日本語 🙂",
    "two  spaces\tand a tab\n\nnew lines \r\n",
    " ",
    "x=3.14; y<-f(x)\n",
)


@dataclass(frozen=True)
class Wanted:
    """How the model should be used, according to the checkpoint's own tokenizer.

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
        """Ids of the prompt without its start token. The prompt is the second-to-last text."""
        return self.ids[-2]

    @property
    def target_ids(self) -> tuple[int, ...]:
        """Ids of the target, which is the last text."""
        return self.ids[-1]

    def questions(self, steps: int) -> Questions:
        """The questions for the engine."""
        return Questions(self.texts, self.prompt, steps, self.target, self.message)


def wanted_of(tokenizer: Any, usage: Usage, prompt: Sequence[int], target: Sequence[int]) -> Wanted:
    """Returns how a prompt, and the target that is scored after it, should be used.

    Args:
        tokenizer: transformers' tokenizer.
        usage: of the checkpoint, from ``edgeverify.litert.bundle.writer.usage_of``.
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
