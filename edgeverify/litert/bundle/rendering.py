"""Renders a conversation as LiteRT-LM does from a container's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

Conversation = Sequence[Mapping[str, str]]
_FIRST = {"role": "user", "content": "What is the capital of France?"}
_ANSWER = {"role": "assistant", "content": "Paris."}
_NEXT = {"role": "user", "content": "And of 日本?\nIn one word."}
TURNS: Mapping[str, Conversation] = {
    "one turn": (_FIRST,),
    "three turns": (_FIRST, _ANSWER, _NEXT),
    "a system message": ({"role": "system", "content": "Answer briefly."}, _FIRST),
}


def render(
    template: str | None, metadata: Mapping[str, Any], messages: Conversation, *, ask: bool = True
) -> str:
    """Returns the text that the engine feeds for a conversation, without its start token.

    LiteRT-LM 0.18 gives a template the content of a message as a list of parts, leaves the names of
    special tokens empty, and sets no other variables than ``messages`` and
    ``add_generation_prompt``. Without a template, it puts the metadata's affixes around messages.

    Args:
        template: the container's Jinja template, or None.
        metadata: the container's metadata.
        messages: roles ``system``, ``user``, ``assistant`` and contents.
        ask: whether the text ends with the beginning of an answer.

    Raises:
        Exception: whatever the template raises; it is somebody else's code, in a sandbox.
    """
    if template is None:
        return _by_affixes(metadata.get("prompt_templates", {}), messages, ask=ask)
    # transformers' own environment: https://huggingface.co/docs/transformers/chat_templating
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    parts = [
        {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages
    ]
    return environment.from_string(template).render(
        messages=parts, add_generation_prompt=ask, bos_token="", eos_token=""
    )


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _by_affixes(
    affixes: Mapping[str, Mapping[str, str]], messages: Conversation, *, ask: bool
) -> str:
    names = {"system": "system", "user": "user", "assistant": "model"}
    text = ""
    for message in messages:
        around = affixes.get(names[message["role"]], {})
        text += around.get("prefix", "") + message["content"] + around.get("suffix", "")
    return text + (affixes.get("model", {}).get("prefix", "") if ask else "")
