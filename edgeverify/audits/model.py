"""The values that an audit reads, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Readings:
    """Values that were read from one place, by field name.

    A field of a block is named ``blocks.{i}.{field}``. ``unread`` gives the reason why a field that
    the place has could not be read. The place cannot express a field that is in neither dict.
    """

    where: str
    values: dict[str, Any] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
