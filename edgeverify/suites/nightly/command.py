"""Does the work of ``edgeverify nightly``, given its options."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeverify.core.choices import whole_number
from edgeverify.core.errors import UsageError
from edgeverify.core.memory import available_memory
from edgeverify.core.store import entries
from edgeverify.core.units import bytes_of, shown
from edgeverify.report import summary
from edgeverify.report.files import write_atomically
from edgeverify.suites.nightly import changed, document, report_text, store
from edgeverify.suites.nightly.matrix import Matrix, NightlyCase, load_matrix
from edgeverify.suites.nightly.merge import check_shards, merge
from edgeverify.suites.nightly.plan import (
    chosen,
    code_digest,
    key_of,
    need_of,
    parse_shard,
    share,
    with_goldens,
)
from edgeverify.suites.nightly.run import Job
from edgeverify.suites.nightly.run import run as run_jobs

# The share of the available memory that is used if no budget is given; the rest of the machine
# needs the remainder.
MEMORY_SHARE = 0.75


def run(options: argparse.Namespace, paths: Mapping[str, Path]) -> str:
    """Runs or merges, writes and prints the report; returns its outcome.

    Args:
        options: as ``edgeverify.cli.commands.nightly`` declares them.
        paths: format → file of a further copy.

    Raises:
        EdgeVerifyError: bad usage or bad input, or a full disk.
    """
    if options.merge:
        _alone(options)
        check_shards(options.merge)
        with store.opened(options.output):
            plan = merge(options.merge, options.output)
            return _show(document.of_run(options.output, plan), options, paths)
    shard = parse_shard(options.shard)
    jobs = whole_number("--jobs", options.jobs, os.cpu_count() or 1, highest=1024) or 1
    budget = _budget(options.memory_budget)
    matrix = load_matrix(options.matrix)
    cases = chosen(matrix.cases, options.case)
    cases = with_goldens(cases, options.golden)
    if options.changed_since is not None:
        cases = _touched(cases, options.changed_since)
    mine = share(cases, shard)
    if options.dry_run:
        for case in mine:
            print(f"{case.id}  {shown(need_of(case))}")
        return "pass"
    if not mine:
        raise UsageError(
            "touches no port of the matrix, so there is nothing to check",
            where=f"--changed-since {options.changed_since}",
            expected="a change of a port or of edgeverify",
            fix="ask `python -m edgeverify.suites.nightly.changed` first whether there is",
        )
    with store.opened(options.output):
        found = _run(options, matrix, cases, mine, jobs, budget)
        return _show(found, options, paths)


def _run(
    options: argparse.Namespace,
    matrix: Matrix,
    cases: Sequence[NightlyCase],
    mine: Sequence[NightlyCase],
    workers: int,
    budget: int,
) -> dict[str, Any]:
    folder, start = options.output, time.perf_counter()
    code = code_digest()
    todo = [Job(case, key_of(case, code), need_of(case)) for case in mine]
    plan = {
        "schema": 1,
        "kind": "nightly-plan",
        "started": _started(folder, {job.case.id: job.key for job in todo}, options.fresh),
        "shard": options.shard,
        "matrix": [case.id for case in cases],
        "excluded": [{"id": out.id, "reason": out.reason} for out in matrix.excluded],
        "cases": {job.case.id: job.key for job in todo},
    }
    store.write_json(folder / store.PLAN, plan)
    done = [j for j in todo if not options.fresh and store.finished(folder, j.case.id, j.key)]
    left = [job for job in todo if job not in done]
    say = _teller(len(todo), len(done), quiet=options.quiet)
    _hush()
    run_jobs(left, folder, workers=workers, budget=budget, cache=options.cache, tell=say)
    return document.of_run(folder, plan, seconds=round(time.perf_counter() - start, 1))


def _started(folder: Path, cases: Mapping[str, str], fresh: bool) -> str:
    """Returns the start time of the run; a resumed run with the same cases keeps its start."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if fresh or not (folder / store.PLAN).exists():
        return now
    plan = store.read_plan(folder)
    return str(plan["started"]) if plan["cases"] == cases else now


def _teller(total: int, kept: int, *, quiet: bool) -> Any:
    """Returns a function that reports each finished case on standard error."""
    count = kept
    if kept and not quiet:
        print(f"{kept} of {total} cases are finished already (--fresh runs them again)", flush=True)

    def tell(job: Job, report: Mapping[str, Any]) -> None:
        nonlocal count
        count += 1
        if not quiet:
            line = report_text.case_line(job.case.id, report)
            print(f"{count}/{total} {line}", file=sys.stderr, flush=True)

    return tell


def _hush() -> None:
    """Silences the libraries of the child processes, which read this from the environment."""
    from edgeverify.core.quiet import QUIET_ENVIRONMENT

    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _show(found: dict[str, Any], options: argparse.Namespace, paths: Mapping[str, Path]) -> str:
    from edgeverify.suites.nightly import report_html, report_junit

    folder = options.output
    store.write_json(folder / store.DOCUMENT, found)
    page = report_html.render(found, pages=store.CASES)
    junit = report_junit.render(found)
    with entries.full_disk_told(folder):
        write_atomically(folder / "index.html", page)
        write_atomically(folder / "junit.xml", junit)
    for name, path in paths.items():
        with entries.full_disk_told(path.parent):
            if name == "json":
                store.write_json(path, found)
            else:
                write_atomically(path, report_html.render(found) if name == "html" else junit)
    summary.append(report_text.markdown(found))
    lines = report_text.lines(found)
    quiet = options.quiet and found["outcome"] == "pass"
    print("\n".join(lines[:1] if quiet else lines))
    return str(found["outcome"])


def _budget(text: str | None) -> int:
    if text is not None:
        return bytes_of("--memory-budget", text)
    # If the system does not report its memory, one process at a time suits most machines.
    return int((available_memory() or 4 * 2**30) * MEMORY_SHARE)


def _touched(cases: Sequence[NightlyCase], ref: str) -> list[NightlyCase]:
    touched = changed.touched(changed.since(ref))
    return [case for case in cases if case.model in touched or ":" in case.model]


def _alone(options: argparse.Namespace) -> None:
    """Refuses options that have no meaning to ``--merge``."""
    for name in (
        "matrix",
        "case",
        "changed_since",
        "shard",
        "jobs",
        "memory_budget",
        "golden",
        "fresh",
    ):
        if getattr(options, name):
            raise UsageError(
                "has no meaning here: nothing is run",
                where=f"--{name.replace('_', '-')}",
                expected="--merge with --output, --json, --html or --junit",
            )
