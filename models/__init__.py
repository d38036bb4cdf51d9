"""Language models re-authored with LiteRT-Torch's Generative API, and the catalogue of them.

Importing this package imports neither torch nor LiteRT-Torch: the catalogue is plain data, and
``load`` imports the one file that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.port import Port

TINY = "tiny"


@dataclass(frozen=True)
class CatalogueEntry:
    """Where a port is and what it offers; the port itself is loaded by ``load``.

    Attributes:
        module: the module that defines the port.
        attribute: the port's name in that module.
        sizes: its sizes, ``"tiny"`` first, the published ones ascending.
        default_size: the size that is checked when none is asked for.
    """

    module: str
    attribute: str
    sizes: tuple[str, ...]
    default_size: str = TINY


CATALOGUE: Mapping[str, CatalogueEntry] = {
    "gemma1": CatalogueEntry("models.gemma", "GEMMA1", (TINY, "2b", "7b")),
    "gemma2": CatalogueEntry("models.gemma2", "GEMMA2", (TINY, "2b")),
    "tinyllama": CatalogueEntry("models.tiny_llama", "TINYLLAMA", (TINY, "1.1b")),
    "phi2": CatalogueEntry("models.phi", "PHI2", (TINY, "2.7b")),
    "openelm": CatalogueEntry("models.openelm", "OPENELM", (TINY, "270m", "450m", "1.1b", "3b")),
    "smollm": CatalogueEntry("models.smollm", "SMOLLM", (TINY, "135m", "360m", "1.7b")),
    "smollm2": CatalogueEntry("models.smollm", "SMOLLM2", (TINY, "135m", "360m", "1.7b")),
}


def load(name: str) -> Port:
    """Imports and returns a port of the catalogue.

    Raises:
        KeyError: ``name`` is not in the catalogue.
    """
    entry = CATALOGUE[name]
    port: Port = getattr(import_module(entry.module), entry.attribute)
    return port
