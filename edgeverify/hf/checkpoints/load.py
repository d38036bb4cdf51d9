"""Loads the tensors of plain files and checks what only their data can show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch

from edgeverify.core.errors import CheckpointError
from edgeverify.hf.checkpoints.expected import Entry, some
from edgeverify.hf.checkpoints.locate import Format

# The arguments of ``load_tensors``, in order.
Plan: TypeAlias = tuple[Format, Mapping[str, Entry], Mapping[str, str], Mapping[str, str], Path]


def load_tensors(
    form: Format,
    entries: Mapping[str, Entry],
    take: Mapping[str, str],
    copies: Mapping[str, str],
    where: Path,
) -> dict[str, torch.Tensor]:
    """Loads a resolved checkpoint, file by file.

    Args:
        form: how the files are read.
        entries: the stored tensors.
        take: the model's name → the stored name.
        copies: additional stored name of a tied tensor → the stored name that it must equal.
        where: the checkpoint, for messages.

    Returns:
        The model's names → float32 tensors, in the order of ``take``; float32 ones are not copied.

    Raises:
        CheckpointError: a value is NaN or Inf, or a tied tensor differs from its other copy.
    """
    stored: dict[str, torch.Tensor] = {}
    with told_when_gone(where):
        for file in sorted({entries[name].file for name in (*take.values(), *copies)}):
            names = [n for n in (*take.values(), *copies) if entries[n].file == file]
            for name, tensor in form.read(file, names):
                stored[name] = tensor.to(torch.float32)
    require_finite(stored, where)
    for alias, name in copies.items():
        require_tied(alias, name, stored[alias], stored[name], where)
    return {name: stored[stored_name] for name, stored_name in take.items()}


@contextmanager
def told_when_gone(where: Path) -> Iterator[None]:
    """Raises a ``CheckpointError`` if a file changed after it was opened."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot be read any more ({error.strerror or error})",
            where=error.filename or where,
            expected="the file that was opened",
            fix="leave the checkpoint as it is while it is checked",
        ) from error


def require_finite(
    stored: Mapping[str, torch.Tensor],
    where: Path,
    done: Callable[[torch.Tensor], Any] = lambda _: None,
) -> None:
    """Refuses NaN and Inf; calls ``done`` with each tensor after it was checked.

    Raises:
        CheckpointError: a value is NaN or Inf; names each such tensor.
    """
    odd = []
    for name, tensor in stored.items():
        # One pass, without a mask of the tensor's size; NaN reaches both ends.
        ends = torch.stack(torch.aminmax(tensor)) if tensor.numel() else torch.zeros(2)
        if not torch.isfinite(ends).all():
            odd.append(f"{name!r} ({_census(tensor)})")
        done(tensor)
    if odd:
        raise CheckpointError(
            f"values that are no numbers in {some(odd, quote=False)}",
            where=where,
            expected="finite weights (also after conversion to float32)",
            fix="take an undamaged checkpoint",
        )


def _census(tensor: torch.Tensor) -> str:
    nans, infinite = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
    told = [f"{n} {kind}" for n, kind in ((nans, "NaN"), (infinite, "Inf")) if n]
    return f"{', '.join(told)} of {tensor.numel()}"


def require_tied(
    alias: str, name: str, left: torch.Tensor, right: torch.Tensor, where: Path
) -> None:
    """Refuses a tied tensor ``alias`` whose values differ from those of ``name``."""
    if left.data_ptr() != right.data_ptr() and not torch.equal(left, right):
        raise CheckpointError(
            f"tensor {alias!r} differs from {name!r}, though the config ties them",
            where=where,
            expected="the same values, or tie_word_embeddings false in config.json",
            fix="untie them in config.json if the model was trained with a head of its own",
        )
