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
import sysconfig
import types
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeverify.core.case import Case, plan_steps
from edgeverify.core.trace import Trace

# Code whose version is in every key: it has a name and no digest.
LIBRARIES = frozenset({"torch", "litert_torch", *sys.stdlib_module_names})
# Packages whose objects hold caches, handles and counters besides what they mean.
OPAQUE = LIBRARIES | {"numpy", "transformers", "safetensors", "tensorflow", "jax"}
PLAIN = (bool, int, float, complex, str, bytes, frozenset, type(None))
INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


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
    """Digest of a model's config, code and values, without the parameters that a checkpoint fills.

    The digest follows code into what it calls: methods, properties, closures, defaults, and what it
    names in its own module and in others that are not installed.
    """
    code = _Code(model.parameters())
    code.add("model", model)
    return code.sha.hexdigest()


def of_config(config: Any) -> str:
    """Digest of a ``ModelConfig``: its values, and the code of the functions in it."""
    code = _Code()
    code.add("config", config)
    return code.sha.hexdigest()


class _Code:
    """A digest of code and of values; it includes each function, class and object once."""

    def __init__(self, without: Iterable[torch.Tensor] = ()) -> None:
        self.sha = hashlib.sha256()
        self._without = {id(tensor) for tensor in without}
        self._seen: set[Any] = set()
        self._objects: dict[int, tuple[int, Any]] = {}  # held, so that no other gets the address

    def add(self, name: str, value: Any) -> None:
        """Adds a value: plain, an array, code, or a container or an object of these.

        Of an object of an opaque package only its class is added, unless it is a dataclass or a
        module.
        """
        self._tell(name, type(value).__qualname__)
        if isinstance(value, (*PLAIN, enum.Enum, np.generic, torch.dtype)):
            self._tell(_plain(value))
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            self.add_array(value)
        elif isinstance(value, tuple):
            self._tell(len(value))
            for part in value:
                self.add("", part)
        elif isinstance(value, types.FunctionType):
            self.add_function(value)
        elif isinstance(value, types.BuiltinFunctionType):
            self._tell(_name(value))
        elif isinstance(value, (staticmethod, classmethod)):
            self.add("", value.__func__)
        elif isinstance(value, types.MethodType):
            self.add("", (value.__func__, value.__self__))
        elif isinstance(value, property):
            self.add("", (value.fget, value.fset))
        elif isinstance(value, functools.cached_property):
            self.add("", value.func)
        elif isinstance(value, functools.partial):
            self.add("", (value.func, value.args, *sorted(value.keywords.items())))
        elif isinstance(value, type):
            self.add_class(value)
        elif isinstance(value, (list, set, dict)) or _has_values(value):
            self.add_object(name, value)

    def add_array(self, array: torch.Tensor | np.ndarray) -> None:
        """Adds dtype, shape and bytes, which only tensors of subclasses and on meta do not have."""
        self._tell(array.dtype, tuple(array.shape))
        if isinstance(array, torch.Tensor):
            plain = type(array) in (torch.Tensor, nn.Parameter) and not array.is_meta
            if id(array) in self._without or not plain:
                return
            if array.is_quantized:
                array = array.dequantize()
            if array.layout is not torch.strided:
                array = array.to_dense()
            array = array.detach().cpu().resolve_conj().resolve_neg().contiguous()
            array = array.flatten().view(torch.uint8).numpy()  # NumPy has no bfloat16
        if array.dtype.hasobject:  # its bytes are addresses
            self.add("", tuple(array.flat))
        else:
            self.sha.update(array.tobytes())

    def add_object(self, name: str, value: Any) -> None:
        """Adds a container or an object; met again, only which one of those before it is."""
        if id(value) in self._objects:
            self._tell(self._objects[id(value)][0])
            return
        self._objects[id(value)] = len(self._objects), value
        if isinstance(value, set):
            self._tell(_plain(frozenset(value)))
        elif isinstance(value, list):
            self.add("", tuple(value))
        elif isinstance(value, dict):
            # The key of a hook is a counter of the process.
            self.add("", tuple(value.values() if "_hooks" in name else value.items()))
        else:
            for attribute, part in sorted(_attributes(value).items()):
                self.add(attribute, part)
            self.add_class(type(value))

    def add_class(self, kind: type) -> None:
        """Adds the code of a class and of those that it inherits from."""
        for part in kind.__mro__:
            self._tell(_name(part) if _package(part) in LIBRARIES else "")
            if part in self._seen or _package(part) in LIBRARIES:
                continue
            self._seen.add(part)
            for name, value in sorted(vars(part).items()):
                # Python's own notes, some made by what others do: copying adds __slotnames__.
                if not (name.startswith("__") and isinstance(value, (*PLAIN, tuple, list, dict))):
                    self.add(name, value)

    def add_function(self, function: types.FunctionType) -> None:
        """Adds the code of a function, what it closes over, and what it names."""
        # A decorator of a library says nothing; a port's own closes over what it wraps.
        while hasattr(function, "__wrapped__") and _is_installed(function):
            function = function.__wrapped__
        if _package(function) in LIBRARIES:
            self._tell(_name(function))
        if function in self._seen or _package(function) in LIBRARIES:
            return
        self._seen.add(function)
        self.add("defaults", (function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # not filled yet
                self.add("closure", cell.cell_contents)
        names = self._add_code(function.__code__)
        for name in names:
            value = function.__globals__.get(name)
            if not isinstance(value, types.ModuleType):
                self._add_named(function, name, value)
            elif not _is_installed(value):
                for attribute in sorted(set(names) & set(vars(value))):
                    self._add_named(function, attribute, vars(value)[attribute])

    def _add_named(self, function: types.FunctionType, name: str, value: Any) -> None:
        """Adds what a function names, but for the code of another package that is installed."""
        code = isinstance(value, (type, types.FunctionType))
        if code and _package(value) != _package(function) and _is_installed(value):
            self._tell(_name(value))
        elif not isinstance(value, types.ModuleType):
            self.add(name, value)

    def _add_code(self, code: types.CodeType) -> list[str]:
        """Returns the names that the code, and code nested in it, looks up."""
        names = list(code.co_names)
        self.sha.update(code.co_code + repr(code.co_names).encode())
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                names += self._add_code(constant)
            else:
                self._tell(_plain(constant))
        return names

    def _tell(self, *values: object) -> None:
        for value in values:
            self.sha.update(f"{value}\n".encode())


def _plain(value: Any) -> str:
    """``repr`` that is the same in every process; the order of a set's own ``repr`` is not."""
    if isinstance(value, frozenset):
        return f"frozenset({sorted(map(_plain, value))})"
    return repr(value)


def _has_values(value: Any) -> bool:
    """Whether an object is known by its attributes."""
    if dataclasses.is_dataclass(value) or isinstance(value, (nn.Module, types.SimpleNamespace)):
        return True
    return _package(type(value)) not in OPAQUE


def _attributes(value: Any) -> dict[str, Any]:
    """An object's attributes, those in slots included."""
    slots = [
        name
        for kind in type(value).__mro__
        for name, member in vars(kind).items()
        if isinstance(member, types.MemberDescriptorType) and hasattr(value, name)
    ]
    return {**getattr(value, "__dict__", {}), **{name: getattr(value, name) for name in slots}}


def _is_installed(value: Any) -> bool:
    """Whether a module, or the one that code is of, is Python's or in ``site-packages``."""
    if isinstance(value, types.FunctionType):
        file = value.__code__.co_filename
    else:
        module = value if isinstance(value, types.ModuleType) else sys.modules.get(value.__module__)
        # A port's own modules are not kept in sys.modules; built-in ones are, and have no file.
        file = "" if module is None else getattr(module, "__file__", None) or INSTALLED[0]
    return str(file).startswith(INSTALLED)


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _package(value: Any) -> str | None:
    module = getattr(value, "__module__", None)
    return module.partition(".")[0] if isinstance(module, str) else None
