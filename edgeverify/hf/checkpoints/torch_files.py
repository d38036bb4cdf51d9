"""Reads PyTorch state dicts without running any code in them.

``torch.load`` is always called with ``weights_only=True``: its unpickler builds tensors and
containers and refuses every other call before it is made.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edgeverify.core.errors import CheckpointError
from edgeverify.hf.checkpoints.expected import Entry, some

# The keys under which trainers wrap a state dict, in the order in which they are tried.
_WRAPPERS = ("model_state_dict", "state_dict", "model")
# torch's own message (`torch/_weights_only_unpickler.py`) for a call that it refused.
_REFUSED = re.compile(
    r"GLOBAL (\S+) (?:was not an allowed|whose module)"
    r"|unrecognized function (?:<.*?function )?(\w+)"
)
_UNPICKLER = "WeightsUnpickler error:"


def list_torch(path: Path) -> dict[str, Entry]:
    """Lists a state dict's tensors; those of a zip file (torch ≥ 1.6) stay on disk.

    Raises:
        CheckpointError: the pickle contains more than tensors, is damaged, or is not a state dict.
        OSError: the file cannot be read.
    """
    return {
        name: Entry(path, tuple(tensor.shape), _dtype_name(tensor))
        for name, tensor in _load(path).items()
    }


def read_torch(path: Path, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the named tensors in their stored dtype, contiguous, memory-mapped where possible.

    Raises:
        CheckpointError: the file changed after it was listed.
    """
    state = _load(path)
    for name in names:
        yield name, state[name].detach().contiguous()


def _load(path: Path) -> dict[str, torch.Tensor]:
    with path.open("rb"):  # an unreadable file is reported as such, not as a bad pickle
        pass
    # The older format is one stream and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what matters is raised
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # the unpickler of a hostile file may raise anything
        raise _refusal(path, error) from error
    return _tensors_of(_unwrapped(loaded, path), path)


def _refusal(path: Path, error: Exception) -> CheckpointError:
    text = str(error)
    if found := _REFUSED.search(text):
        return CheckpointError(
            f"its pickle asks to run {found.group(1) or found.group(2)!r}, which was refused and "
            "not run",
            where=path,
            expected="a state dict of tensors and nothing else",
            fix="get the weights as .safetensors, from someone you trust",
        )
    # The text before it is advice to load without weights_only.
    lines = text.rpartition(_UNPICKLER)[2].strip().splitlines()
    return CheckpointError(
        f"cannot be read as a PyTorch state dict ({(lines or [type(error).__name__])[0][:200]})",
        where=path,
        expected="a whole file written by torch.save(model.state_dict(), …)",
        fix="copy or download it again, or get the weights as .safetensors",
    )


def _unwrapped(loaded: Any, path: Path) -> Any:
    """Enters ``{"model_state_dict": …}`` and the like, unless this level contains tensors."""
    while isinstance(loaded, Mapping):
        if any(isinstance(value, torch.Tensor) for value in loaded.values()):
            break
        inner = [key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if len(inner) > 1:
            raise CheckpointError(
                f"holds several candidates: {some(inner)}",
                where=path,
                expected="one state dict",
                fix="save the one that is meant on its own",
            )
        if not inner:
            break
        loaded = loaded[inner[0]]
    return loaded


def _tensors_of(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    what = None
    if not isinstance(loaded, Mapping):
        what = f"holds a {type(loaded).__name__}"
    elif not loaded:
        what = "holds no tensors"
    else:
        odd = [
            f"{name!r} ({type(value).__name__})"
            for name, value in loaded.items()
            if not isinstance(value, torch.Tensor) or not isinstance(name, str)
        ]
        for name, value in loaded.items():
            if isinstance(value, torch.Tensor) and value.layout != torch.strided:
                odd.append(f"{name!r} ({str(value.layout).removeprefix('torch.')})")
            elif isinstance(value, torch.Tensor) and value.device.type != "cpu":
                odd.append(f"{name!r} (without data, on {value.device.type!r})")
        if odd:
            what = f"holds what is no dense tensor: {some(odd, quote=False)}"
    if what is not None:
        raise CheckpointError(
            what,
            where=path,
            expected="a state dict: names and tensors",
            fix="save model.state_dict(), or get the weights as .safetensors",
        )
    return dict(loaded)


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
