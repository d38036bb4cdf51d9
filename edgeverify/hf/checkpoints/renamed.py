"""Tensor names that all carry another prefix than the model's, and what else is stored instead.

Wrappers put their own name in front of every tensor: ``torch.compile`` (``_orig_mod.``), data
parallelism (``module.``), adapters (``base_model.model.``), a model of text inside one of images
(``model.language_model.``). A base model saved without its head has none at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgeverify.core.errors import CheckpointError
from edgeverify.hf.checkpoints.expected import Entry, Expected, some

# peft's own names: https://huggingface.co/docs/peft/developer_guides/checkpoint
_ADAPTER = re.compile(r"(^|\.)(lora_[A-Z]\w*|lora_embedding_[AB]|base_layer|modules_to_save)(\.|$)")


def without_prefix(expected: Expected, names: Iterable[str]) -> tuple[dict[str, str], str]:
    """Finds the model's names of tensors that differ from them by a prefix alone.

    Args:
        expected: the model's tensors.
        names: the checkpoint's own names.

    Returns:
        The model's name → the checkpoint's, and what was done, for the report's head. Each name is
        its own, and the text is empty, where another prefix would not fit the model exactly.
    """
    stored = list(names)
    inner = _inner_prefix(expected)
    if inner is not None and not _fits(expected, set(stored)):
        for other in _other_prefixes(expected, stored, inner):
            by_name = {_renamed(name, other, inner, expected): name for name in stored}
            if len(by_name) == len(stored) and _fits(expected, set(by_name)):
                told = f"{other!r} in the tensors' names taken as {inner!r}"
                return by_name, told if other else f"{inner!r} put before the tensors' names"
    return {name: name for name in stored}, ""


def refuse_adapters(entries: Mapping[str, Entry], where: Path) -> None:
    """Refuses a checkpoint that still holds the tensors of an adapter.

    Raises:
        CheckpointError: some tensors are an adapter's.
    """
    found = [name for name in entries if _ADAPTER.search(name)]
    if found:
        raise CheckpointError(
            f"an adapter is not merged: {len(found)} tensors are an adapter's, {some(found, 2)}",
            where=where,
            expected="the weights of one model",
            fix="merge the adapter into its base model (peft: merge_and_unload) and save that",
        )


def _inner_prefix(expected: Expected) -> str | None:
    """Returns what the names of a model's layers begin with, e.g. ``model.``."""
    for name in expected.shapes:
        found = re.match(r"(.*?)layers\.\d+\.", name)
        if found:
            return found.group(1)
    return None


def _other_prefixes(expected: Expected, stored: Iterable[str], inner: str) -> list[str]:
    """Returns the prefixes that a name of the first layer has instead of ``inner``."""
    first = next(name for name in expected.shapes if re.match(rf"{re.escape(inner)}layers\.", name))
    tail = first.removeprefix(inner)
    found = (n.removesuffix(tail) for n in stored if n == tail or n.endswith(f".{tail}"))
    return [prefix for prefix in found if prefix != inner]


def _renamed(name: str, other: str, inner: str, expected: Expected) -> str:
    wanted = {*expected.shapes, *expected.tied}
    if name.startswith(other) and inner + name.removeprefix(other) in wanted:
        return inner + name.removeprefix(other)
    # A head stands outside: it keeps its name, or has the wrapper's part of the prefix.
    for end in (head for head in wanted if not head.startswith(inner)):
        if name == end or (name.endswith(f".{end}") and other.startswith(name.removesuffix(end))):
            return end
    return inner + name.removeprefix(other) if name.startswith(other) else name


def _fits(expected: Expected, names: set[str]) -> bool:
    """Whether these are all of the model's names and no others."""
    held = {expected.tied.get(name, name) for name in names}
    others = held - expected.shapes.keys()
    ignored = all(any(re.search(p, name) for p in expected.ignored) for name in others)
    return ignored and expected.shapes.keys() <= held
