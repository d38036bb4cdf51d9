"""Fingerprints of a re-authored model for cache keys: its config, its code, its probe results.

A port can be changed in ways that no file shows (``dataclasses.replace`` with a closure). So the
key of a converted file includes the digest of what the model computes on fixed tokens, besides its
config and the code of its classes.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import sys
import types
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeverify.core.case import Case, plan_steps
from edgeverify.core.trace import Trace

LIBRARIES = ("torch.", "litert_torch.")
# Packages whose objects hold caches, handles and counters besides what they mean.
INSTALLED = ("torch", "litert_torch", "numpy", "transformers", "safetensors", "tensorflow", "jax")
PLAIN = (bool, int, float, complex, str, bytes, frozenset, type(None))
# What code may name in its module and no definition of a function or class digests.
VALUES = (*PLAIN, tuple, list, dict, set, torch.Tensor, np.ndarray, types.SimpleNamespace)


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
        self._objects: dict[int, Any] = {}  # held, so that no other gets the address

    def add(self, name: str, value: Any) -> None:
        """Adds an attribute: plain, an array, code, or an object of these.

        Parameters are the checkpoint's and modules are visited by their paths, so neither is added.
        An object of a library says no more than its class, unless it is a dataclass.
        """
        if isinstance(value, (*PLAIN, enum.Enum, np.generic, torch.dtype)):
            self.sha.update(f"{name}={_plain(value)}".encode())
        elif isinstance(value, (nn.Module, nn.Parameter)):
            pass
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            self.add_array(name, value)
        elif isinstance(value, (tuple, list)):
            self.sha.update(f"{name}: {len(value)}".encode())
            for part in value:
                self.add(name, part)
        elif isinstance(value, set):
            self.sha.update(f"{name}={_plain(frozenset(value))}".encode())
        elif isinstance(value, dict):
            for key, part in value.items():  # a hook's key is a global counter
                self.add(f"{name}.{key}" if isinstance(key, str) else name, part)
        elif isinstance(value, types.FunctionType):
            self.sha.update(name.encode())
            self.add_function(value)
        elif isinstance(value, (staticmethod, classmethod)):
            self.add(name, value.__func__)
        elif isinstance(value, types.MethodType):
            self.add(name, (value.__func__, value.__self__))
        elif isinstance(value, property):
            self.add(name, value.fget)
        elif isinstance(value, functools.cached_property):
            self.add(name, value.func)
        elif isinstance(value, functools.partial):
            self.add(name, (value.func, value.args, *sorted(value.keywords.items())))
        elif isinstance(value, type):
            self.add_class(value)
        elif _is_data(value):
            self.add_object(name, value)

    def add_array(self, name: str, value: torch.Tensor | np.ndarray) -> None:
        self.sha.update(f"{name}: {value.dtype} {tuple(value.shape)}".encode())
        if isinstance(value, torch.Tensor):
            if value.is_meta or value.layout is not torch.strided:
                return
            # As bytes: NumPy has no bfloat16.
            value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        self.sha.update(value.tobytes())

    def add_object(self, name: str, value: Any) -> None:
        """Adds each attribute of an object, once, and the code of its class."""
        self.sha.update(f"{name}: {type(value).__qualname__}".encode())
        if id(value) in self._objects:
            return
        self._objects[id(value)] = value
        for attribute, part in sorted(_attributes(value).items()):
            self.add(attribute, part)
        self.add_class(type(value))

    def add_class(self, kind: type) -> None:
        if kind in self._seen or kind is object or _of_library(kind):
            return
        self._seen.add(kind)
        for name, value in sorted(vars(kind).items()):
            # Python's own notes, some of them made by what others do: copying adds __slotnames__.
            if not (name.startswith("__") and isinstance(value, (*PLAIN, tuple, list, dict))):
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
            if isinstance(value, VALUES) or _package(value) == _package(function):
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


def _is_data(value: Any) -> bool:
    """Whether an object is known by its attributes: a dataclass, or of a class of no library."""
    if dataclasses.is_dataclass(value) or isinstance(value, types.SimpleNamespace):
        return True
    package = _package(type(value))
    return package not in INSTALLED and package not in sys.stdlib_module_names


def _attributes(value: Any) -> dict[str, Any]:
    """An object's attributes, those in slots included."""
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def _of_library(value: Any) -> bool:
    return f"{value.__module__}.".startswith(LIBRARIES)


def _package(value: Any) -> str | None:
    module = getattr(value, "__module__", None)
    return module.partition(".")[0] if isinstance(module, str) else None
