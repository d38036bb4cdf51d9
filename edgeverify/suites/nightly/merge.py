"""Merges the shards of one run into the folder that an unsharded run would have left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeverify.core.errors import UsageError
from edgeverify.core.store import entries
from edgeverify.suites.nightly import store


def check_shards(folders: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Returns the plans of the shards, after checking that they make one run.

    Raises:
        UsageError: a folder is not a nightly run's, the shards are of different matrices, or two of
            them have the same case.
    """
    plans = {folder: store.read_plan(folder) for folder in folders}
    first, plan = next(iter(plans.items()))
    owner: dict[str, Path] = {}
    for folder, other in plans.items():
        where = f"--merge {folder}"
        if other["matrix"] != plan["matrix"] or other["excluded"] != plan["excluded"]:
            raise UsageError(
                f"is of another matrix than {first}", where=where, expected="shards of one run"
            )
        for name in other["cases"]:
            if name in owner:
                raise UsageError(
                    f"{name!r} is in {owner[name]}, too",
                    where=where,
                    expected="every case in one shard",
                    fix="name each shard once",
                )
            owner[name] = folder
    return plans


def merge(folders: Sequence[Path], output: Path) -> dict[str, Any]:
    """Copies every shard's cases into ``output`` and writes the plan of the whole there.

    Args:
        folders: each belongs to a run with ``--shard``, killed or finished.
        output: locked by ``store.opened``; not one of ``folders``.

        Returns:
        The plan, for ``document.of_run``: a case that no shard has is missing in that document.

    Raises:
        UsageError: as ``check_shards``, or a folder is ``output``.
        DiskFullError: there is no room for the copies.
    """
    plans = check_shards(folders)
    for folder in folders:
        if folder.resolve() == output.resolve():
            raise UsageError(
                "is --output, too", where=f"--merge {folder}", expected="a folder for the report"
            )
    plan = next(iter(plans.values()))
    owner = {name: folder for folder, other in plans.items() for name in other["cases"]}
    keys = {name: key for other in plans.values() for name, key in other["cases"].items()}
    whole = {
        **plan,
        "started": min(other["started"] for other in plans.values()),
        "shard": None,
        "cases": {name: keys.get(name) for name in plan["matrix"]},
    }
    store.write_json(output / store.PLAN, whole)
    for name in plan["matrix"]:
        store.forget(output, name)
        for suffix in (".json", ".html") if name in owner else ():
            source = owner[name] / store.CASES / f"{name}{suffix}"
            if source.is_file():
                entries.place(source, output / store.CASES / source.name)
    return whole
