"""Which faults run on which ports, and the workers that run them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgeverify_models as models
from edgeverify.core.progress import Progress
from edgeverify.core.store import entries
from edgeverify.suites.selftest.faults import catalogue
from edgeverify.suites.selftest.faults.fault import Fault
from edgeverify.suites.selftest.rows import Row, Summary, summarise
from edgeverify.suites.selftest.trial import CLEAN, Bench

# Small enough that two workers end at about the same time.
FAULTS_A_JOB = 20
WORKERS = 2


@dataclass(frozen=True)
class Job:
    """Some faults on one port, and the legs that are also run unchanged."""

    port: str
    faults: tuple[str, ...]
    clean: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """The result of a self-test.

    Attributes:
        rows: one for each fault and port, in the order of catalogue and ports.
        seconds: how long it took.
        environment: the versions that it ran with.
    """

    rows: tuple[Row, ...]
    seconds: float
    environment: dict[str, str]

    @property
    def summary(self) -> Summary:
        return summarise(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        from dataclasses import asdict

        summary = {name: _plain(value) for name, value in asdict(self.summary).items()}
        return {
            "schema": 1,
            "passed": self.summary.passed,
            "summary": summary,
            "seconds": self.seconds,
            "environment": self.environment,
            "rows": [row.to_dict() for row in self.rows],
        }


def _plain(value: Any) -> Any:
    return str(value) if value in (float("inf"), float("-inf")) else value


def plan(ports: Sequence[str], faults: Sequence[Fault], *, quick: bool = False) -> list[Job]:
    """The jobs of a self-test.

    Args:
        ports: registered names.
        faults: from the catalogue.
        quick: run each fault on only one port. Ports take turns; faults of files are left to
            the first port that has them, because each further file costs a conversion.
    """
    of_port: dict[str, list[Fault]] = {port: [] for port in ports}
    for number, fault in enumerate(faults):
        fitting = [port for port in ports if port in fault.ports]
        if quick and fitting:
            fitting = [fitting[0 if fault.file else number % len(fitting)]]
        for port in fitting:
            of_port[port].append(fault)
    jobs = []
    for port, chosen in of_port.items():
        names = [fault.name for fault in chosen]
        legs = tuple(leg for leg in CLEAN if any(fault.leg == leg for fault in chosen))
        for start in range(0, len(names), FAULTS_A_JOB):
            part = tuple(names[start : start + FAULTS_A_JOB])
            jobs.append(Job(port, part, legs if start == 0 else ()))
    return jobs


def run_job(job: Job, cache: Path | None = None) -> list[Row]:
    """Runs one job in this process."""
    bench = Bench(models.load(job.port), cache)
    rows = [bench.try_fault(CLEAN[leg]) for leg in job.clean]
    return rows + [bench.try_fault(catalogue.find(name)) for name in job.faults]


def run(
    jobs: Sequence[Job],
    *,
    cache: Path | None = None,
    workers: int = WORKERS,
    prepare: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Runs all jobs.

    Args:
        jobs: from ``plan``.
        cache: another cache than the default one.
        workers: processes; with 1 all runs in this one.
        prepare: called first in every worker process, e.g. to silence it.
        progress: advances with each job that ends.
    """
    start = time.perf_counter()
    done: dict[int, list[Row]] = {}
    with (progress or Progress()).stage("self-test", len(jobs)) as tick:
        if workers == 1:
            for number, job in enumerate(jobs):
                done[number] = run_job(job, cache)
                tick()
        else:
            # A fork would copy the state of libraries that have threads.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, context, prepare) as pool:
                futures = {pool.submit(run_job, job, cache): n for n, job in enumerate(jobs)}
                for future in as_completed(futures):
                    done[futures[future]] = future.result()
                    tick()
    rows = tuple(row for number in sorted(done) for row in done[number])
    seconds = round(time.perf_counter() - start, 1)
    return Result(rows, seconds, entries.versions())
