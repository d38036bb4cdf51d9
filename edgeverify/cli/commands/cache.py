"""``edgeverify cache ls|prune|verify``: manages the folder of converted files and traces."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from edgeverify.core.choices import one_of
from edgeverify.core.errors import UsageError
from edgeverify.core.results import FAIL, PASS
from edgeverify.core.store.upkeep import Entry
from edgeverify.core.units import bytes_of, seconds_of, shown
from edgeverify.report.files import check_paths, write_atomically
from edgeverify.report.tables import padded

ACTIONS = ("ls", "prune", "verify")
DAY = 86400.0


def add_options(command: argparse.ArgumentParser) -> None:
    """Declares the options of the verb."""
    add = command.add_argument
    add("action", metavar="ls|prune|verify")
    add("--cache", metavar="DIR", type=Path, help="the folder (default: EDGEVERIFY_CACHE)")
    add("--max-size", metavar="M", help="prune: bytes that may be left, e.g. 10GiB")
    add("--older-than", metavar="T", help="prune: what was not used for so long, e.g. 30d")
    add("--remove", action="store_true", help="verify: remove what is damaged")
    add("--json", metavar="FILE", type=Path, help="ls: write every entry to a file")


def run(options: argparse.Namespace) -> str:
    """Runs one of the three actions; the outcome is ``fail`` if damaged entries are left.

    Raises:
        EdgeVerifyError: bad usage, or a cache that cannot be written.
    """
    action = one_of("cache", options.action, ACTIONS)
    for name, owner in (
        ("max_size", "prune"),
        ("older_than", "prune"),
        ("remove", "verify"),
        ("json", "ls"),
    ):
        if getattr(options, name) and action != owner:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"has no meaning to {action}", where=option, expected=owner)
    from edgeverify.core.store.entries import cache_root

    root = (options.cache or cache_root()).expanduser()
    if not root.is_dir():
        if options.cache is not None:
            raise UsageError("there is no such folder", where=f"--cache {root}")
        print(f"{root}: nothing is cached yet")
        return PASS
    if action == "ls":
        return _ls(options, root)
    return _prune(options, root) if action == "prune" else _verify(options, root)


def _ls(options: argparse.Namespace, root: Path) -> str:
    from edgeverify.core.store.upkeep import entries

    if options.json:
        check_paths({"--json": options.json})
    found, now = entries(root), time.time()
    by_kind: dict[str, list[Entry]] = {}
    for entry in found:
        by_kind.setdefault(entry.kind, []).append(entry)
    rows = [["KIND", "ENTRIES", "SIZE", "OLDEST", "LAST USE"]]
    for kind, some in by_kind.items():
        rows.append(
            [
                kind,
                str(len(some)),
                shown(sum(entry.size for entry in some)),
                _ago(now - min(entry.made for entry in some)),
                _ago(now - max(entry.used for entry in some)),
            ]
        )
        if options.verbose:
            rows += [
                [f"  {e.path.name}", "", shown(e.size), _ago(now - e.made), _ago(now - e.used)]
                for e in some
            ]
    print("\n".join(padded(rows)))
    bound = os.environ.get("EDGEVERIFY_CACHE_SIZE")
    bounded = f", bounded to {bound} by EDGEVERIFY_CACHE_SIZE" if bound else ""
    total = shown(sum(entry.size for entry in found))
    print(f"{root}: {len(found)} entries, {total}{bounded}")
    if options.json:
        content = [{**asdict(entry), "path": str(entry.path)} for entry in found]
        document = {"schema": 1, "kind": "cache", "root": str(root), "entries": content}
        write_atomically(options.json, json.dumps(document, indent=1) + "\n")
    return PASS


def _prune(options: argparse.Namespace, root: Path) -> str:
    from edgeverify.core.store.upkeep import prune

    if options.max_size is None and options.older_than is None:
        raise UsageError(
            "says not what to remove",
            where="cache prune",
            expected="--max-size, --older-than or both",
            fix="for instance: edgeverify cache prune --max-size 10GiB",
        )
    old = options.older_than
    result = prune(
        root,
        max_size=None if options.max_size is None else bytes_of("--max-size", options.max_size),
        older_than=None if old is None else seconds_of("--older-than", old),
    )
    if options.verbose:
        for entry in result.removed:
            print(f"removed {entry.kind}/{entry.path.name}  {shown(entry.size)}")
    freed = shown(sum(entry.size for entry in result.removed))
    print(f"{root}: {len(result.removed)} entries removed, {freed}; {shown(result.left)} left")
    if result.spared:
        kept = shown(sum(entry.size for entry in result.spared))
        print(f"{len(result.spared)} entries, {kept}, stay: a running process may use them")
    return PASS


def _verify(options: argparse.Namespace, root: Path) -> str:
    from edgeverify.suites.cache import verify

    count = damaged = 0
    for entry, fault in verify(root, remove=options.remove):
        count += 1
        if fault:
            damaged += 1
            did = "; removed" if options.remove else ""
            print(f"{entry.kind}/{entry.path.name}: {fault}{did}")
    if not options.quiet or damaged:
        print(f"{root}: {count} entries read, {damaged} damaged")
    if damaged and not options.remove:
        print("`edgeverify cache verify --remove` removes them; the next run makes them again")
    return FAIL if damaged and not options.remove else PASS


def _ago(seconds: float) -> str:
    for unit, name in ((DAY, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name} ago"
    return "now"
