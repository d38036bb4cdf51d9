"""Determines the tensors that a checkpoint must have, from the reference model itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from edgeverify.core.errors import CheckpointError

# Dtypes that are widened or rounded to float32, in which every implementation here computes. Others
# (float8, int8, …) need scales that a plain tensor does not have.
READABLE_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Entry:
    """One stored tensor: its file, its shape and its torch dtype name, e.g. ``bfloat16``."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Expected:
    """The tensors that a model loads.

    Attributes:
        model: the HF class, for messages.
        shapes: name → shape, in forward order; each parameter occurs once.
        tied: additional name → the name of the same parameter (a tied head).
        untied_head: a head that the class would tie if the config said so → its table.
        ignored: patterns of names that the HF class itself ignores while loading.
    """

    model: str
    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    untied_head: Mapping[str, str]
    ignored: tuple[str, ...]


def expected_tensors(model: nn.Module) -> Expected:
    """Lists the tensors that the reference model loads; it may be on the meta device."""
    names: dict[int, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        if first == name:
            shapes[name] = tuple(tensor.shape)
        else:
            tied[name] = first
    tieable = getattr(model, "_tied_weights_keys", None) or {}
    untied = {k: v for k, v in dict(tieable).items() if k in shapes and v in shapes}
    ignored = set(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    # transformers 5 (`_adjust_missing_and_unexpected_keys`) does the same: old checkpoints have one
    # inv_freq per layer, which is now computed from the config.
    if any(name.endswith("rotary_emb.inv_freq") for name, _ in model.named_buffers()):
        ignored.add(r"rotary_emb\.inv_freq")
    return Expected(type(model).__name__, shapes, tied, untied, tuple(sorted(ignored)))


def resolve(
    expected: Expected, entries: Mapping[str, Entry], where: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Matches a checkpoint's tensors exactly with the model's.

    Args:
        expected: the model's tensors.
        entries: the checkpoint's tensors, by its names.
        where: the checkpoint, for messages.

    Returns:
        Two mappings: the model's name → the checkpoint's name, in forward order; and a tied name
        that the checkpoint also lists → the stored name that it must equal.

    Raises:
        CheckpointError: a name is missing or unknown, a shape is wrong, or a dtype cannot be read.
    """
    ignored = {
        name
        for name in entries
        if name not in expected.shapes
        and name not in expected.tied
        and any(re.search(pattern, name) for pattern in expected.ignored)
    }
    stored = {name: entry for name, entry in entries.items() if name not in ignored}
    take = {name: name for name in expected.shapes if name in stored}
    copies: dict[str, str] = {}
    for alias, name in expected.tied.items():
        if alias not in stored:
            continue
        # A writer that drops duplicates may store either name of a tied tensor.
        if take.setdefault(name, alias) != alias:
            copies[alias] = take[name]
    _require_names(expected, take, stored, where)
    _require_dtypes(stored, where)
    _require_shapes(expected, take, copies, stored, where)
    return {name: take[name] for name in expected.shapes}, copies


def _require_names(
    expected: Expected, take: Mapping[str, str], stored: Mapping[str, Entry], where: Path
) -> None:
    missing = [name for name in expected.shapes if name not in take]
    unknown = [n for n in stored if n not in expected.shapes and n not in expected.tied]
    if not missing and not unknown:
        return
    if not unknown and len(missing) == 1 and missing[0] in expected.untied_head:
        raise CheckpointError(
            f"there is no tensor {missing[0]!r}, and the config does not tie it to "
            f"{expected.untied_head[missing[0]]!r}",
            where=where,
            expected="a head of its own, or tied embeddings in config.json",
            fix="add the tensor, or set tie_word_embeddings to true if the model was trained so",
        )
    facts = []
    if missing:
        facts.append(f"{_count(missing, 'tensor')} of {expected.model} missing: {some(missing)}")
    if unknown:
        facts.append(f"{_count(unknown, 'tensor')} unknown to {expected.model}: {some(unknown)}")
    raise CheckpointError(
        "; ".join(facts),
        where=where,
        expected=f"exactly the {len(expected.shapes)} tensors of {expected.model} under its config",
        fix="take a whole checkpoint that belongs to this config.json",
    )


def _require_dtypes(stored: Mapping[str, Entry], where: Path) -> None:
    odd = [f"{n!r} ({e.dtype})" for n, e in stored.items() if e.dtype not in READABLE_DTYPES]
    if odd:
        raise CheckpointError(
            f"{_count(odd, 'tensor')} of a dtype that is not read: {some(odd, quote=False)}",
            where=where,
            expected=", ".join(READABLE_DTYPES),
            fix="take the unquantized checkpoint",
        )


def _require_shapes(
    expected: Expected,
    take: Mapping[str, str],
    copies: Mapping[str, str],
    stored: Mapping[str, Entry],
    where: Path,
) -> None:
    wanted = {take[name]: shape for name, shape in expected.shapes.items()}
    wanted.update({alias: wanted[name] for alias, name in copies.items()})
    odd = [
        f"{name!r} is {stored[name].shape}, not {shape}"
        for name, shape in wanted.items()
        if stored[name].shape != shape
    ]
    if odd:
        raise CheckpointError(
            f"{_count(odd, 'tensor')} of another shape: {some(odd, quote=False)}",
            where=where,
            expected=f"the shapes of {expected.model} under its config",
            fix="take the config.json that belongs to these weights",
        )


def some(items: Iterable[str], limit: int = 6, *, quote: bool = True) -> str:
    """Lists up to ``limit`` items and counts the rest."""
    listed = list(items)
    shown = ", ".join(repr(item) if quote else item for item in listed[:limit])
    return shown + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def _count(items: list[str], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
