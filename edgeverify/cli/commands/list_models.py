"""``edgeverify list``: shows the registered models, their sizes and hub ids."""

from __future__ import annotations

import argparse

from edgeverify.core.results import PASS
from edgeverify.legs.ports import catalogue
from edgeverify.report.tables import padded


def add_options(command: argparse.ArgumentParser) -> None:
    """The verb has no options."""
    del command


def run(options: argparse.Namespace) -> str:
    """Shows a row for each size; the outcome is always a pass."""
    del options
    rows = [("MODEL", "SIZE", "HUB ID")]
    for name, entry in catalogue().items():
        for size in entry.sizes:
            default = " (default)" if size == entry.default_size else ""
            hub_id = entry.hub_ids.get(size, "none: seeded weights only")
            rows.append((name, f"{size}{default}", hub_id))
    print("\n".join(padded(rows)))
    return PASS
