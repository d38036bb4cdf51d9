"""What a re-authored model *is*, for cache keys: its config, its code, its numbers on a probe.

A port can be changed in ways that no file shows (``dataclasses.replace`` with a closure), so the
key of a converted file holds the digest of what the model computes on fixed tokens, besides its
config and the code of its classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from edgeverify.case import Case, plan_steps
from edgeverify.trace import Trace

LIBRARIES = ("torch.", "litert_torch.")


def probe(case: Case, vocab_size: int) -> Case:
    """A case with the same cache and layout whose tokens depend on nothing but their number.

    It fills the largest signature once and decodes once.
    """
    length = min(case.prefill_lengths[-1], case.kv_cache_len - 1)
    tokens = [(7 * i + 1) % vocab_size for i in range(length + 1)]
    return replace(case, steps=plan_steps(tokens[:-1], [length], tokens[-1:]), greedy=False)


def of_trace(trace: Trace) -> str:
    """Digest of every array of a trace, names included."""
    sha = hashlib.sha256()
    for key in trace:
        sha.update(key.encode())
        sha.update(trace[key].tobytes())
    return sha.hexdigest()


def of_module(model: nn.Module) -> str:
    """Digest of the config, and of the code and plain attributes of all classes in the model."""
    sha = hashlib.sha256(_describe(getattr(model, "config", None)).encode())
    seen: set[type] = set()
    for path, module in model.named_modules():
        sha.update(path.encode())
        for name, value in sorted(vars(module).items()):
            if isinstance(value, (bool, int, float, str, tuple)):
                sha.update(f"{name}={value!r}".encode())
        for kind in type(module).__mro__:
            if kind not in seen and not (kind.__module__ + ".").startswith(LIBRARIES):
                seen.add(kind)
                _update_with_class(sha, kind)
    return sha.hexdigest()


def of_sources(*patterns: str) -> str:
    """Digest of files of this package, so that a change to them makes new cache entries."""
    package = Path(__file__).parent
    sha = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(package.glob(pattern)):
            sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()


def _describe(value: Any) -> str:
    """``repr`` without addresses: a function is its name and code."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ", ".join(
            f"{f.name}={_describe(getattr(value, f.name))}" for f in dataclasses.fields(value)
        )
        return f"{type(value).__qualname__}({fields})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_describe, value))}]"
    if isinstance(value, types.FunctionType):
        sha = hashlib.sha256()
        _update_with_code(sha, value.__code__)
        return f"{value.__module__}.{value.__qualname__}:{sha.hexdigest()}"
    return repr(value)


def _update_with_class(sha: Any, kind: type) -> None:
    for name, value in sorted(vars(kind).items()):
        function = value
        while hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        if isinstance(function, types.FunctionType):
            sha.update(name.encode())
            _update_with_code(sha, function.__code__)
            for cell in function.__closure__ or ():
                if isinstance(cell.cell_contents, (bool, int, float, str, tuple)):
                    sha.update(repr(cell.cell_contents).encode())


def _update_with_code(sha: Any, code: types.CodeType) -> None:
    sha.update(code.co_code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _update_with_code(sha, constant)
        else:
            sha.update(repr(constant).encode())
