"""edgeverify: is what ships the same model as the Hugging Face original?

``import edgeverify`` imports neither torch nor TensorFlow nor transformers; the names below are
resolved when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeverify.core.results import Report as Report
    from edgeverify.legs.foreign.check import verify_artifact as verify_artifact
    from edgeverify.legs.ports import load_port as load_port
    from edgeverify.suites.check import verify as verify

__all__ = ["Report", "load_port", "verify", "verify_artifact"]

_HOMES = {
    "Report": "edgeverify.core.results",
    "load_port": "edgeverify.legs.ports",
    "verify": "edgeverify.suites.check",
    "verify_artifact": "edgeverify.legs.foreign.check",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
