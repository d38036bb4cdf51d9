"""Opens checkpoints: ``open_checkpoint`` is the entry point for every source of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgeverify.core.errors import CheckpointError
from edgeverify.core.store.entries import digest, file_digest
from edgeverify.hf.checkpoints import configs, hub, mapped_files, seeded
from edgeverify.hf.checkpoints.expected import Expected, expected_tensors, resolve
from edgeverify.hf.checkpoints.load import Plan, load_tensors
from edgeverify.hf.checkpoints.locate import TENSORS_FIX, Format, Weights, list_entries, locate
from edgeverify.hf.checkpoints.quantized import refuse_quantized
from edgeverify.hf.checkpoints.renamed import refuse_adapters, without_prefix

if TYPE_CHECKING:
    from edgeverify_models.port import Port

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a run.

    Attributes:
        hf_config: the Hugging Face config with HF's own keys; the checkpoint's own if it has one.
        size: the port's size that has this config, or ``"custom"``.
        identity: a digest of the contents (seeded: of the scheme, the config and the seed).
        description: one line for the report.
        tokenizer_dir: the argument of ``AutoTokenizer.from_pretrained``, or None.
        gguf_file: its argument ``gguf_file`` if the tokenizer is in a GGUF, else None.
    """

    hf_config: Mapping[str, Any]
    size: str
    identity: str
    description: str
    tokenizer_dir: Path | None
    gguf_file: str | None = None
    _load: Callable[[], dict[str, torch.Tensor]] = field(kw_only=True, repr=False, compare=False)
    _map: Callable[[str], dict[str, torch.Tensor]] | None = field(
        default=None, kw_only=True, repr=False, compare=False
    )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Loads the weights: HF names → contiguous float32 CPU tensors, in forward order.

        bfloat16, float16 and float64 tensors are converted; float32 ones are memory-mapped, not
        copied. A tied head is left out, because its table stands for both. May be called more than
        once.

        Raises:
            CheckpointError: a value is NaN or Inf, a tied head differs from its table, or the data
                cannot be read.
        """
        return self._load()

    def mapped(self) -> dict[str, torch.Tensor]:
        """Returns the same as ``tensors``, bit by bit, from a memory-mapped file: none is resident.

        Tensors that are not float32 safetensors are first written to the cache as float32, piece by
        piece. ``edgeverify.core.store.mapped.forget`` releases the pages that have been used.

        Raises:
            CheckpointError: as for ``tensors``.
        """
        return self.tensors() if self._map is None else self._map(self.identity)


def open_checkpoint(
    source: str | Path | None,
    port: Port,
    *,
    size: str | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    cache_root: Path | None = None,
) -> Checkpoint:
    """Opens a checkpoint and refuses a wrong one before any tensor is loaded.

    Args:
        source: a directory, a file, a hub id, or None for seeded random weights.
        port: the family that the checkpoint must belong to.
        size: for seeded weights, the port's size (default: ``port.default_size``). For files
            without a ``config.json``, the size that gives their config. For all others it must
            agree with their config.
        seed: the seed of seeded weights.
        trust_remote_code: passed to transformers where it reads files itself (GGUF). It changes
            nothing else: a config's ``auto_map`` is never followed, because both implementations
            are local code.
        cache_root: another cache for dequantized GGUF tensors and digests.

    Raises:
        UsageError: the port has no such size.
        CheckpointError: the weights are missing, damaged, unsafe, or of another model.
    """
    configs.require_size(port, size)
    if source is None:
        return _seeded(port, size or port.default_size, seed, cache_root)
    path = Path(source).expanduser()
    named = str(source)
    try:
        if not named.strip():
            raise CheckpointError("names nothing", where="--checkpoint", fix=TENSORS_FIX)
        if path.exists():
            return _from_files(path, port, size, trust_remote_code, cache_root)
        if path.is_symlink():
            raise CheckpointError("is a link to nothing", where=path, fix=TENSORS_FIX)
        directory = hub.download(named, port)
        return _from_files(directory, port, size, trust_remote_code, cache_root, name=named)
    except OSError as error:
        raise CheckpointError(
            f"cannot be read ({error.strerror or error})",
            where=error.filename or path,
            expected="a readable file or directory",
            fix="check the path and its permissions",
        ) from error


def _seeded(port: Port, size: str, seed: int, cache_root: Path | None) -> Checkpoint:
    config = dict(port.hf_configs[size])
    where = f"port {port.name!r}, size {size!r}"
    draws = seeded.plan_draws(configs.build_reference(config, port, where))
    return Checkpoint(
        hf_config=config,
        size=size,
        identity=digest(seeded.SCHEME, config, seed),
        description=f"seeded random weights, seed {seed}",
        tokenizer_dir=None,
        _load=lambda: seeded.draw_tensors(draws, seed),
        _map=lambda identity: mapped_files.drawn(draws, seed, identity, cache_root),
    )


def _from_files(
    path: Path,
    port: Port,
    size: str | None,
    trust_remote_code: bool,
    cache_root: Path | None,
    name: str | None = None,
) -> Checkpoint:
    weights = locate(path)
    _refuse_pointers(weights)
    if weights.format is None:
        from edgeverify.hf.checkpoints import gguf_files

        opened = gguf_files.open_gguf(
            weights, port, size, trust_remote_code=trust_remote_code, cache_root=cache_root
        )
        config, digests, note = opened.hf_config, [opened.digest], opened.note
        plan = opened.plan
    else:
        config, where = configs.of_files(weights, port, size)
        expected = expected_tensors(configs.build_reference(config, port, where))
        fixed, note = _plan(weights, weights.format, expected, config)
        plan = lambda: fixed  # noqa: E731
        digests = [file_digest(file, root=cache_root) for file in weights.files]
    found = configs.size_of(config, port)
    told = [f"{name or weights.where}: {note}"]
    if weights.unused:
        told.append(f"not used: {', '.join(weights.unused)}")
    return Checkpoint(
        hf_config=config,
        size=found,
        identity=digest("files-1", config, digests),
        description="; ".join(told),
        tokenizer_dir=_tokenizer_dir(weights),
        gguf_file=weights.files[0].name if weights.format is None else None,
        _load=lambda: load_tensors(*plan()),
        _map=lambda identity: mapped_files.stored(plan(), identity, cache_root),
    )


def _plan(
    weights: Weights, form: Format, expected: Expected, config: Mapping[str, Any]
) -> tuple[Plan, str]:
    entries = list_entries(weights, form)
    refuse_adapters(entries, weights.where)
    own_names, renamed = without_prefix(expected, entries)
    named = {name: entries[own] for name, own in own_names.items()}
    refuse_quantized(expected, named, config, weights.where)
    take, copies = resolve(expected, named, weights.where)
    take = {name: own_names[held] for name, held in take.items()}
    copies = {own_names[alias]: own_names[name] for alias, name in copies.items()}
    dtypes = "/".join(sorted({entries[name].dtype for name in take.values()}))
    files = "" if len(weights.files) == 1 else f" in {len(weights.files)} shards"
    note = ", ".join(filter(None, [f"{form.name}{files}", dtypes, renamed]))
    return (form, entries, take, copies, weights.where), note


def _refuse_pointers(weights: Weights) -> None:
    for file in weights.files:
        with file.open("rb") as opened:
            if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise CheckpointError(
                    "is a Git LFS pointer, not the weights",
                    where=file,
                    expected="the file itself",
                    fix="run 'git lfs pull' in its repository",
                )


def _tokenizer_dir(weights: Weights) -> Path | None:
    has_files = any((weights.directory / name).is_file() for name in _TOKENIZER_FILES)
    return weights.directory if has_files or weights.format is None else None
