"""Reads a checkpoint's ``generation_config.json``: how transformers generates with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeverify.core.errors import CheckpointError


def generation_config(folder: Path | None) -> Mapping[str, Any]:
    """Returns the generation config of a checkpoint's folder; empty without one.

    Raises:
        CheckpointError: the file is no JSON.
    """
    path = None if folder is None else folder / "generation_config.json"
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"is no JSON ({error})",
            where=path,
            expected="the checkpoint's generation config",
            fix="fetch the file again, or take it away",
        ) from error
    return found if isinstance(found, dict) else {}
