"""Language models re-authored with LiteRT-Torch's Generative API, and the catalogue of them.

Importing this package imports neither torch nor LiteRT-Torch: the catalogue is plain data, and
``load`` imports only the requested file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeverify_models.port import Port

TINY = "tiny"


@dataclass(frozen=True)
class CatalogueEntry:
    """Where a port is and what it offers; ``load`` loads the port itself.

    Attributes:
        module: the module that defines the port.
        attribute: the port's name in that module.
        hub_ids: published size → hub id, ascending. ``tiny`` has none: its weights are seeded.
        default_size: the size that is checked if no size is requested.
    """

    module: str
    attribute: str
    hub_ids: Mapping[str, str]
    default_size: str = TINY

    @property
    def sizes(self) -> tuple[str, ...]:
        """Returns the sizes: ``tiny`` first, then the published ones, ascending."""
        return (TINY, *self.hub_ids)


CATALOGUE: Mapping[str, CatalogueEntry] = {
    "gemma1": CatalogueEntry(
        "edgeverify_models.gemma", "GEMMA1", {"2b": "google/gemma-2b", "7b": "google/gemma-7b"}
    ),
    "gemma2": CatalogueEntry("edgeverify_models.gemma2", "GEMMA2", {"2b": "google/gemma-2-2b"}),
    "tinyllama": CatalogueEntry(
        "edgeverify_models.tiny_llama", "TINYLLAMA", {"1.1b": "TinyLlama/TinyLlama-1.1B-Chat-v1.0"}
    ),
    "phi2": CatalogueEntry("edgeverify_models.phi", "PHI2", {"2.7b": "microsoft/phi-2"}),
    "openelm": CatalogueEntry(
        "edgeverify_models.openelm",
        "OPENELM",
        {
            "270m": "apple/OpenELM-270M",
            "450m": "apple/OpenELM-450M",
            "1.1b": "apple/OpenELM-1_1B",
            "3b": "apple/OpenELM-3B",
        },
    ),
    "smollm": CatalogueEntry(
        "edgeverify_models.smollm",
        "SMOLLM",
        {
            "135m": "HuggingFaceTB/SmolLM-135M",
            "360m": "HuggingFaceTB/SmolLM-360M",
            "1.7b": "HuggingFaceTB/SmolLM-1.7B",
        },
    ),
    "smollm2": CatalogueEntry(
        "edgeverify_models.smollm",
        "SMOLLM2",
        {
            "135m": "HuggingFaceTB/SmolLM2-135M",
            "360m": "HuggingFaceTB/SmolLM2-360M",
            "1.7b": "HuggingFaceTB/SmolLM2-1.7B",
        },
    ),
}


def load(name: str) -> Port:
    """Imports and returns a port of the catalogue.

    Raises:
        KeyError: ``name`` is not in the catalogue.
    """
    entry = CATALOGUE[name]
    port: Port = getattr(import_module(entry.module), entry.attribute)
    return port


def is_registered(port: Port) -> bool:
    """Whether a port is the catalogue's own, and not a variant of it."""
    return port.name in CATALOGUE and load(port.name) is port
