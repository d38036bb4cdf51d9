"""Fingerprints of a re-authored model for cache keys: its config, its code, its probe results.

A port can be changed in ways that no file shows (``dataclasses.replace`` with a closure). So the
key of a converted file includes the digest of what the model computes on fixed tokens, besides its
config and the code of its classes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn

from edgeverify.core.case import Case, plan_steps
from edgeverify.core.trace import Trace

LIBRARIES = ("torch.", "litert_torch.")
PLAIN = (bool, int, float, complex, str, bytes, frozenset, type(None))


def probe(case: Case, vocab_size: int) -> Case:
    """Returns a case with the same cache and layout whose tokens depend only on their number.

    It fills the largest signature once and decodes once.
    """
    length = min(case.prefill_lengths[-1], case.kv_cache_len - 1)
    tokens = [(7 * i + 1) % vocab_size for i in range(length + 1)]
    return replace(case, steps=plan_steps(tokens[:-1], [length], tokens[-1:]), greedy=False)


def of_trace(trace: Trace) -> str:
    """Digest of every array of a trace, including names, dtypes and shapes."""
    sha = hashlib.sha256()
    for key in trace:
        sha.update(f"{key} {trace[key].dtype.str} {trace[key].shape}".encode())
        sha.update(trace[key].tobytes())
    return sha.hexdigest()


def of_module(model: nn.Module) -> str:
    """Digest of the config, and of the code and plain attributes of all modules and classes.

    The digest follows code into what it calls: methods, properties, closures, defaults, and the
    functions, classes and constants of its own package that it names.
    """
    code = _Code()
    code.sha.update(_describe(getattr(model, "config", None)).encode())
    for path, module in model.named_modules():
        code.sha.update(path.encode())
        for name, value in sorted(vars(module).items()):
            code.add(name, value)
        for kind in type(module).__mro__:
            code.add_class(kind)
    return code.sha.hexdigest()


def of_config(config: Any) -> str:
    """Digest of a ``ModelConfig``: its values, and the code of the functions in it."""
    return hashlib.sha256(_describe(config).encode()).hexdigest()


def _describe(value: Any) -> str:
    """``repr`` without addresses: a function is represented by its name and code."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ", ".join(
            f"{f.name}={_describe(getattr(value, f.name))}" for f in dataclasses.fields(value)
        )
        return f"{type(value).__qualname__}({fields})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_describe, value))}]"
    if isinstance(value, types.FunctionType):
        code = _Code()
        code.add_function(value)
        return f"{value.__module__}.{value.__qualname__}:{code.sha.hexdigest()}"
    return repr(value)


class _Code:
    """A digest of code and of plain values; it includes each function and class once."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()
        self._seen: set[Any] = set()

    def add(self, name: str, value: Any) -> None:
        """Adds an attribute if it is plain or code; other objects have no digest of their own."""
        if isinstance(value, PLAIN):
            self.sha.update(f"{name}={_plain(value)}".encode())
        elif isinstance(value, (tuple, list)):
            self.sha.update(f"{name}: {len(value)}".encode())
            for part in value:
                self.add(name, part)
        elif isinstance(value, dict):
            for key, part in value.items():  # a hook's key is a global counter
                self.add(f"{name}.{key}" if isinstance(key, str) else name, part)
        elif isinstance(value, types.FunctionType):
            self.sha.update(name.encode())
            self.add_function(value)
        elif isinstance(value, (staticmethod, classmethod, types.MethodType)):
            self.add(name, value.__func__)
        elif isinstance(value, property):
            self.add(name, value.fget)
        elif isinstance(value, functools.cached_property):
            self.add(name, value.func)
        elif isinstance(value, functools.partial):
            self.add(name, (value.func, value.args, *sorted(value.keywords.items())))
        elif isinstance(value, type):
            self.add_class(value)

    def add_class(self, kind: type) -> None:
        if kind in self._seen or kind is object or _of_library(kind):
            return
        self._seen.add(kind)
        for name, value in sorted(vars(kind).items()):
            if not (name.startswith("__") and isinstance(value, (*PLAIN, tuple))):
                self.add(name, value)

    def add_function(self, function: types.FunctionType) -> None:
        while hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        if function in self._seen or _of_library(function):
            return
        self._seen.add(function)
        self.add("defaults", function.__defaults__)
        self.add("defaults", tuple((function.__kwdefaults__ or {}).items()))
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # not filled yet
                self.add("closure", cell.cell_contents)
        for name in self._add_code(function.__code__):
            value = function.__globals__.get(name)
            if isinstance(value, (*PLAIN, tuple)) or _package(value) == _package(function):
                self.add(name, value)

    def _add_code(self, code: types.CodeType) -> list[str]:
        """Returns the names that the code, and code nested in it, looks up."""
        names = list(code.co_names)
        self.sha.update(code.co_code + repr(code.co_names).encode())
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                names += self._add_code(constant)
            else:
                self.sha.update(_plain(constant).encode())
        return names


def _plain(value: Any) -> str:
    """``repr`` that is the same in every process; the order of a set's own ``repr`` is not."""
    if isinstance(value, frozenset):
        return f"frozenset({sorted(map(_plain, value))})"
    return repr(value)


def _of_library(value: Any) -> bool:
    return f"{value.__module__}.".startswith(LIBRARIES)


def _package(value: Any) -> str | None:
    module = getattr(value, "__module__", None)
    return module.partition(".")[0] if isinstance(module, str) else None
