"""Decides which files of a directory are the weights, and which are to be ignored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeverify.core.errors import CheckpointError
from edgeverify.hf.checkpoints.expected import Entry, some
from edgeverify.hf.checkpoints.safetensors_files import list_safetensors, read_safetensors
from edgeverify.hf.checkpoints.torch_files import list_torch, read_torch

TENSORS_FIX = "give a directory with config.json and .safetensors, or name the file"
# Files that a trainer leaves beside the weights, and adapters, which are not a model.
_NOT_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|adapter_model)")
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")


@dataclass(frozen=True)
class Format:
    """One file format of tensors: how to list a file and how to read tensors from it."""

    name: str
    suffixes: tuple[str, ...]
    whole: str
    list: Callable[[Path], dict[str, Entry]]
    read: Callable[[Path, Sequence[str]], Iterator[tuple[str, torch.Tensor]]]

    @property
    def index(self) -> str:
        return f"{self.whole}.index.json"


SAFETENSORS = Format(
    "safetensors", (".safetensors",), "model.safetensors", list_safetensors, read_safetensors
)
TORCH = Format("PyTorch", (".bin", ".pt", ".pth"), "pytorch_model.bin", list_torch, read_torch)
GGUF = ".gguf"
_FORMS = (SAFETENSORS, TORCH)
_ALL_SUFFIXES = (*SAFETENSORS.suffixes, *TORCH.suffixes, GGUF)


@dataclass(frozen=True)
class Weights:
    """The files of a checkpoint.

    Attributes:
        where: the directory or file that the user named, for messages.
        directory: the folder with ``config.json`` and the tokenizer, if they exist.
        files: the weights, sorted by name.
        format: how the files are read; None for GGUF.
        index: the shards' index, or None.
        unused: other files that could be taken for weights, each with the reason.
    """

    where: Path
    directory: Path
    files: tuple[Path, ...]
    format: Format | None
    index: Path | None = None
    unused: tuple[str, ...] = ()


def locate(path: Path) -> Weights:
    """Finds the weights at an existing path: safetensors before PyTorch before GGUF.

    Raises:
        CheckpointError: there are no weights, several files are possible, or a shard or its index
            is missing.
        OSError: something cannot be read.
    """
    if path.is_dir():
        return _locate_in(path)
    if not path.is_file():
        raise CheckpointError("is neither a file nor a directory", where=path, fix=TENSORS_FIX)
    if path.suffix == GGUF:
        return Weights(path, path.parent, (path,), None)
    for form in (SAFETENSORS, TORCH):
        if path.suffix in form.suffixes:
            if shards := _SHARD.search(path.name):
                raise CheckpointError(
                    f"is one of {int(shards.group(1))} shards",
                    where=path,
                    expected="all of them",
                    fix="give the directory",
                )
            return Weights(path, path.parent, (path,), form)
    raise CheckpointError(
        f"is no weights file by its ending {path.suffix!r}",
        where=path,
        expected=".safetensors, .bin, .pt, .pth or .gguf",
        fix=TENSORS_FIX,
    )


def _locate_in(directory: Path) -> Weights:
    files = sorted(p for p in directory.iterdir() if not p.is_dir())
    weights = [p for p in files if not _NOT_WEIGHTS.match(p.name)]
    _refuse_special(weights)
    _refuse_adapter(directory, files)
    by_form = {form: [p for p in weights if p.suffix in form.suffixes] for form in _FORMS}
    ggufs = [p for p in weights if p.suffix == GGUF]
    for form, found in by_form.items():
        if found or (directory / form.index).is_file():
            others = [p for p in weights if p.suffix in _ALL_SUFFIXES and p not in found]
            unused = [f"{p.name} (there is {form.name})" for p in others]
            adapters = [p.name for p in files if p.name.startswith("adapter_model")]
            unused += [f"{name} (an adapter without adapter_config.json)" for name in adapters]
            return _of_format(directory, form, found, unused)
    if ggufs:
        return Weights(directory, directory, (_only(directory, ggufs),), None)
    ignored = [p.name for p in files if p.suffix in _ALL_SUFFIXES]
    adapter = any(name.startswith("adapter_model") for name in ignored)
    raise CheckpointError(
        f"holds no weights{f' ({some(ignored)} are none)' if ignored else ''}"
        if files
        else "is an empty directory",
        where=directory,
        expected="model.safetensors, its shards with an index, pytorch_model.bin or one .gguf",
        fix="merge the adapter into its base model and save that" if adapter else TENSORS_FIX,
    )


def _refuse_special(weights: Sequence[Path]) -> None:
    """Refuses a pipe, a socket or a device in the place of weights: reading one may never end."""
    for path in weights:
        if path.suffix in _ALL_SUFFIXES and path.exists() and not path.is_file():
            raise CheckpointError(
                "is a pipe, a socket or a device",
                where=path,
                expected="a regular file",
                fix="put the weights themselves there",
            )


def _refuse_adapter(directory: Path, files: Sequence[Path]) -> None:
    """Refuses a folder in which transformers would apply an adapter to the weights."""
    weights = [p.name for p in files if p.name.startswith("adapter_model")]
    if weights and (directory / "adapter_config.json").is_file():
        raise CheckpointError(
            f"holds an adapter ({weights[0]}, adapter_config.json), which transformers applies to "
            "the weights beside it",
            where=directory,
            expected="the weights of one model",
            fix="merge the adapter into its base model and save that, or move it elsewhere",
        )


def _of_format(directory: Path, form: Format, found: list[Path], unused: list[str]) -> Weights:
    # transformers looks for the whole file first, then for the index; this code does the same.
    whole, index = directory / form.whole, directory / form.index
    if whole in found:
        unused += [f"{p.name} (there is {form.whole})" for p in found if p != whole]
        return Weights(directory, directory, (whole,), form, None, tuple(unused))
    if index.is_file():
        shards = sorted({directory / name for name in read_index(index).values()})
        if missing := [shard.name for shard in shards if not shard.is_file()]:
            raise CheckpointError(
                f"{len(missing)} of {len(shards)} shards missing: {some(missing)}",
                where=directory,
                expected=f"every file that {index.name} names",
                fix="copy or download them again",
            )
        unused += [f"{p.name} (not in {index.name})" for p in found if p not in shards]
        return Weights(directory, directory, tuple(shards), form, index, tuple(unused))
    if any(_SHARD.search(p.name) for p in found):
        raise CheckpointError(
            "holds shards without their index",
            where=directory,
            expected=form.index,
            fix="copy or download it, too",
        )
    return Weights(directory, directory, (_only(directory, found),), form, None, tuple(unused))


def _only(directory: Path, found: list[Path]) -> Path:
    if len(found) > 1:
        raise CheckpointError(
            f"{len(found)} files could be the weights: {some(p.name for p in found)}",
            where=directory,
            expected="one",
            fix="give the path of the one that is meant",
        )
    return found[0]


def read_index(index: Path) -> dict[str, str]:
    """Reads an index's ``weight_map``: tensor name → the shard's file name.

    Raises:
        CheckpointError: the index is damaged or points out of its directory.
        OSError: it cannot be read.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            "has no weight_map",
            where=index,
            expected='{"weight_map": {tensor: shard, …}}',
            fix="copy or download it again",
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(
                f"puts {name!r} into {shard!r}",
                where=index,
                expected="the name of a file beside the index",
                fix="copy or download it again",
            )
    return weight_map


def list_entries(weights: Weights, form: Format) -> dict[str, Entry]:
    """Lists the tensors of all files; checks that an index agrees with them on every tensor.

    Raises:
        CheckpointError: a file is damaged, a tensor is in two shards, or the index does not match.
    """
    entries: dict[str, Entry] = {}
    for file in weights.files:
        for name, entry in form.list(file).items():
            if name in entries:
                raise CheckpointError(
                    f"tensor {name!r} is in two shards, {entries[name].file.name} and {file.name}",
                    where=weights.where,
                    expected="every tensor once",
                    fix="copy or download the checkpoint again",
                )
            entries[name] = entry
    if weights.index is not None:
        _require_index(weights.index, read_index(weights.index), entries)
    return entries


def _require_index(
    index: Path, weight_map: Mapping[str, str], entries: Mapping[str, Entry]
) -> None:
    absent = [
        f"{name!r} in {shard}"
        for name, shard in weight_map.items()
        if name not in entries or entries[name].file.name != shard
    ]
    extra = [f"{name!r} in {e.file.name}" for name, e in entries.items() if name not in weight_map]
    facts = []
    if absent:
        facts.append(f"names what is not there: {some(absent, quote=False)}")
    if extra:
        facts.append(f"does not name {some(extra, quote=False)}")
    if facts:
        raise CheckpointError(
            " and ".join(facts),
            where=index,
            expected="the tensors of its shards",
            fix="copy or download the index and the shards again",
        )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: the file is not a JSON object.
        OSError: it cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"is not valid JSON ({error})",
            where=path,
            expected="a JSON object",
            fix="copy or download it again",
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"holds a JSON {type(value).__name__}",
            where=path,
            expected="a JSON object",
            fix="copy or download it again",
        )
    return value
