"""Caches facts that need the Hugging Face model built, keyed by its config.

Building the model on the meta device takes a tenth of a second; importing the libraries that build
it takes ten times that. A run whose traces are all in the cache needs the model for nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeverify.core.store import entries

# The files that, with transformers, build a model from a config.
_BUILDERS = ("hf/remembered.py", "hf/config.py", "hf/openelm.py")


def described(
    what: str,
    hf_config: Mapping[str, Any],
    sources: tuple[str, ...],
    make: Callable[[], Any],
    cache: Path | None,
) -> Any:
    """Returns a description of a config's model, from the cache or made now.

    Args:
        what: the description's name.
        hf_config: the ``config.json`` dict.
        sources: the files of this package that produce the description.
        make: returns a JSON value, or raises.
        cache: another cache than the default one.

    Returns:
        The result of ``make``. If JSON does not return it unchanged, it is made on every call.
    """
    code = entries.source_digest(*_BUILDERS, *sources)
    try:
        key = entries.digest(what, hf_config, entries.versions(), code)
    except TypeError:  # a port's own config that no config.json could contain
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
