"""edgeverify: is what ships the same model as the Hugging Face original?

``import edgeverify`` imports neither torch nor TensorFlow nor transformers; the names below are
resolved when they are first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeverify.core.results import Report as Report
    from edgeverify.foreign.check import verify_artifact as verify_artifact
    from edgeverify.ports import load_port as load_port
    from edgeverify.verify import verify as verify

__all__ = ["Report", "load_port", "verify", "verify_artifact"]

_HOMES = {
    "load_port": "edgeverify.ports",
    "Report": "edgeverify.core.results",
    "verify_artifact": "edgeverify.foreign.check",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """``edgeverify.verify`` is the function, although a submodule has the same name.

    The import system binds a submodule to its package as soon as anything imports it. A property
    with a setter that ignores modules keeps the public name on the function.
    """

    @property
    def verify(self) -> Any:
        return importlib.import_module("edgeverify.verify").verify

    @verify.setter
    def verify(self, value: Any) -> None:
        if not isinstance(value, ModuleType):
            raise AttributeError("edgeverify.verify cannot be replaced")


sys.modules[__name__].__class__ = _Package
