"""Matrices over all ports: two rows in every run, the others behind the mark ``exhaustive``.

The rows of such a matrix differ in the port alone, and convert and run every one of them. What the
others gave last is kept in ``exhaustive.json``, which ``python -m tasks exhaustive`` makes again;
``test_matrices.py`` compares its tests and versions with those that are there.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

KEPT = Path(__file__).parent / "exhaustive.json"
# Node ids of the exhaustive tests that were collected, as ``exhaustive.json`` writes them.
FOUND = pytest.StashKey[set[str]]()
# Like Llama, and the one that has most: both windows, both caps, norms around both branches.
EVERYDAY = ("tinyllama", "gemma2")


def each_port(ports: Iterable[str], everyday: tuple[str, ...] = EVERYDAY) -> list[Any]:
    """The ports as parameters; those that are not for every day carry the mark."""
    return [
        port if port in everyday else pytest.param(port, marks=pytest.mark.exhaustive)
        for port in ports
    ]


def name_of(item: pytest.Item) -> str:
    """A test's name as JUnit has it: ``tests.room.module::test[parameters]``."""
    module = Path(item.location[0]).with_suffix("")
    return f"{'.'.join(module.parts)}::{item.name}"


def keep(junit: Path, path: Path = KEPT) -> int:
    """Keeps what a run of the exhaustive tests gave; returns 1, and keeps nothing, if one failed.

    Args:
        junit: the run's ``--junit-xml``. It is removed: a later run that is broken off before it
            writes its own must not be told by this one's.
        path: where it is kept.
    """
    from edgeverify.core.store.entries import versions

    if not junit.exists():
        print(f"not kept: the run has not written {junit}")
        return 1
    cases = list(ElementTree.parse(junit).getroot().iter("testcase"))
    junit.unlink()
    bad = [case.get("name") for case in cases if any(c.tag != "properties" for c in case)]
    if bad or not cases:
        print(f"not kept: {len(bad)} of {len(cases)} exhaustive tests did not pass: {bad}")
        return 1
    seconds = {
        f"{case.get('classname')}::{case.get('name')}": round(float(case.get("time", 0)), 1)
        for case in cases
    }
    kept = {
        "command": "python -m tasks exhaustive",
        "versions": versions(),
        "passed": dict(sorted(seconds.items())),
    }
    path.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"kept: {len(seconds)} exhaustive tests passed in {sum(seconds.values()):.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1])))
