"""What is read off a Hugging Face model of a config, remembered by the config.

Building the model on the meta device takes a tenth of a second, importing what it is built from ten
times that. A run whose traces are all in the cache needs the model for nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeverify.core.store import entries

# What builds a model from a config, beside transformers.
_BUILDERS = ("hf/remembered.py", "hf/config.py", "hf/openelm.py")


def described(
    what: str,
    hf_config: Mapping[str, Any],
    sources: tuple[str, ...],
    make: Callable[[], Any],
    cache: Path | None,
) -> Any:
    """A description of the model of a config, from the cache or made now.

    Args:
        what: its name.
        hf_config: the ``config.json`` dict.
        sources: the files of this package that describe it.
        make: gives what JSON can hold, or raises.
        cache: another cache than the default one.

    Returns:
        What ``make`` gave; where JSON would give something else back, it is made every time.
    """
    code = entries.source_digest(*_BUILDERS, *sources)
    try:
        key = entries.digest(what, hf_config, entries.versions(), code)
    except TypeError:  # a config of a port's own that no config.json could hold
        return make()
    made: list[Any] = []

    def write(path: Path) -> None:
        made.append(make())
        text = json.dumps(made[0])
        if repr(json.loads(text)) != repr(made[0]):
            raise TypeError("JSON gives something else back")
        path.write_text(text, encoding="utf-8")

    try:
        entry = entries.cached("described", key, ".json", write, root=cache)
    except (TypeError, ValueError):
        if not made:
            raise
    return made[0] if made else json.loads(entry.read_text(encoding="utf-8"))
