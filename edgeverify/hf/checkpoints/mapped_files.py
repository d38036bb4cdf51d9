"""Memory-maps checkpoints as float32 files, so that no tensor needs to be resident.

Float32 safetensors are mapped where they are. Tensors of another dtype or format, and drawn
tensors, are written once, piece by piece, to a float32 file in the cache. In this file each tensor
begins on its own page, in the order of the model, and there is nothing else.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from edgeverify.core.store.entries import cached, digest
from edgeverify.core.store.mapped import forget, map_file, map_new, offsets
from edgeverify.hf.checkpoints import seeded
from edgeverify.hf.checkpoints.expected import Entry
from edgeverify.hf.checkpoints.load import Plan, require_finite, require_tied, told_when_gone
from edgeverify.hf.checkpoints.locate import SAFETENSORS, Format
from edgeverify.hf.checkpoints.safetensors_files import map_safetensors

State = dict[str, torch.Tensor]
_SCHEME = "float32-1"
_FLOAT32 = 4
# Values that are converted at a time.
_PIECE = 1 << 24


def drawn(
    draws: Mapping[str, seeded.Draw], seed: int, identity: str, cache_root: Path | None
) -> State:
    """Returns seeded tensors (see ``seeded``), drawn into a file of the cache."""

    def write(outs: State) -> None:
        for name, out in outs.items():
            seeded.draw_into(out.numpy(), name, draws[name], seed, done=forget)

    return _written({name: d.shape for name, d in draws.items()}, write, identity, cache_root)


def stored(plan: Plan, identity: str, cache_root: Path | None) -> State:
    """Memory-maps the tensors of plain files: bit by bit the result of ``load.load_tensors``.

    Args:
        plan: the arguments of ``load_tensors``.
        identity: the checkpoint's identity, the key of its float32 copy.
        cache_root: another cache than the default one.

    Raises:
        CheckpointError: as for ``load_tensors``.
    """
    form, entries, take, copies, where = plan
    wanted = (*take.values(), *copies)
    with told_when_gone(where):
        if form is SAFETENSORS and all(entries[name].dtype == "float32" for name in wanted):
            found: State = {}
            for file in sorted({entries[name].file for name in wanted}):
                found |= map_safetensors(file)
            _require_right({name: found[name] for name in wanted}, copies, where)
            return {name: found[stored_name] for name, stored_name in take.items()}

        def write(outs: State) -> None:
            by_stored = {take[name]: out for name, out in outs.items()}
            for name, tensor in _read(form, entries, tuple(take.values())):
                _convert(tensor, by_stored[name])
            for alias, tensor in _read(form, entries, tuple(copies)):
                pair = {alias: tensor.to(torch.float32), copies[alias]: by_stored[copies[alias]]}
                _require_right(pair, {alias: copies[alias]}, where)
            _require_right(by_stored, {}, where)

        shapes = {name: entries[stored_name].shape for name, stored_name in take.items()}
        return _written(shapes, write, identity, cache_root)


def _require_right(found: State, copies: Mapping[str, str], where: Path) -> None:
    require_finite(found, where, done=forget)
    for alias, name in copies.items():
        require_tied(alias, name, found[alias], found[name], where)
        forget(found[alias], found[name])


def _read(
    form: Format, entries: Mapping[str, Entry], wanted: tuple[str, ...]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the stored tensors, file by file; a mapped file's are not resident together."""
    for file in sorted({entries[name].file for name in wanted}):
        names = [name for name in wanted if entries[name].file == file]
        if form is SAFETENSORS:
            found = map_safetensors(file)
            yield from ((name, found[name]) for name in names)
        elif zipfile.is_zipfile(file):
            # torch's mapping releases its pages when its last tensor is deleted.
            for name in names:
                yield from form.read(file, [name])
        else:
            yield from form.read(file, names)


def _convert(tensor: torch.Tensor, out: torch.Tensor) -> None:
    flat, target = tensor.reshape(-1), out.reshape(-1)
    for start in range(0, len(flat), _PIECE):
        piece = slice(start, start + _PIECE)
        target[piece].copy_(flat[piece])
        forget(target[piece], flat[piece])


def _written(
    shapes: Mapping[str, tuple[int, ...]],
    write: Callable[[State], None],
    identity: str,
    cache_root: Path | None,
) -> State:
    """Maps the float32 file of these tensors, from the cache or written now.

    Args:
        shapes: name → shape, in the order of the file.
        write: fills all tensors, which are zero before.
        identity: identifies the tensors' values.
        cache_root: another cache than the default one.
    """
    begins, end = offsets({name: _FLOAT32 * math.prod(s) for name, s in shapes.items()})

    def views(contents: np.ndarray) -> State:
        found = {}
        for name, shape in shapes.items():
            held = contents[begins[name] : begins[name] + _FLOAT32 * math.prod(shape)]
            found[name] = torch.from_numpy(held.view(np.float32).reshape(shape))
        return found

    def make(path: Path) -> None:
        write(views(map_new(path, end)))

    key = digest(_SCHEME, identity, [[name, list(s)] for name, s in shapes.items()])
    return views(map_file(cached("float32", key, ".bin", make, root=cache_root)))
