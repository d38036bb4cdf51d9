"""Runs the cases in warm processes, within a memory budget, each case contained.

A process imports the libraries once (5 s) and checks case after case. A case that crashes, hangs
or takes more memory than it may ends only its own process, and the next case gets a new one.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeverify.core.errors import DiskFullError, EdgeVerifyError, PortError
from edgeverify.core.memory import tells_out_of_memory
from edgeverify.core.results import FAIL, SCHEMA, UNCHECKED
from edgeverify.core.units import shown
from edgeverify.litert.contained.child import Child, EndedError
from edgeverify.suites.nightly import store
from edgeverify.suites.nightly.matrix import NightlyCase

TASK = "edgeverify.suites.nightly.child:check_case"
# A process that still has more than this allocated after a case is ended, to make room for the
# next case. Measured: 0.6 GiB after a hundred tiny models.
HELD_BYTES = 3 * 2**29


@dataclass(frozen=True)
class Job:
    """A case with its key and the memory that it needs, in bytes."""

    case: NightlyCase
    key: str
    need: int


@dataclass
class _Queue:
    """Chooses the next case; call all its methods with ``changed`` locked."""

    pending: list[Job]
    budget: int
    running: list[Job] = field(default_factory=list)
    stopped: BaseException | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, last: tuple[Any, ...] | None) -> Job | None:
        """Takes the next job that fits the memory; None if there is none now.

        It prefers the group of the process's last case, whose file is already converted; then a
        group that no process is converting, because two would wait for the same conversion.
        """
        room = self.budget - sum(job.need for job in self.running)
        fitting = [job for job in self.pending if job.need <= room]
        if not fitting:
            return None
        busy = {job.case.group for job in self.running}
        best = min(
            fitting,
            key=lambda job: 0 if job.case.group == last else 1 + (job.case.group in busy),
        )
        self.pending.remove(best)
        self.running.append(best)
        return best


def run(
    jobs: Sequence[Job],
    folder: Path,
    *,
    workers: int,
    budget: int,
    cache: Path | None = None,
    task: str = TASK,
    tell: Callable[[Job, Mapping[str, Any]], None] = lambda job, report: None,
) -> None:
    """Runs jobs and writes each one's report to ``folder`` as soon as it is done.

    Args:
        jobs: the unfinished ones, in order.
        folder: the run's folder, opened by ``store.opened``.
        workers: the largest number of processes.
        budget: bytes that the running cases may take together.
        cache: replaces the default cache.
        task: the task that a process runs.
        tell: called with each finished job and its report.

    Raises:
        DiskFullError: the disk is full. Finished cases stay on disk.
    """
    fitting = []
    for job in jobs:
        store.forget(folder, job.case.id)
        if job.need <= budget:
            fitting.append(job)
            continue
        what = (
            f"needs about {shown(job.need)} of memory, more than the {shown(budget)} of "
            "--memory-budget"
        )
        _finish(folder, job, without_verdict(job.case, UNCHECKED, "memory", what), {}, tell)
    queue = _Queue(fitting, budget)
    children = [Child() for _ in range(min(workers, len(fitting)))]
    threads = [
        threading.Thread(target=_work, args=(queue, child, folder, cache, task, tell), daemon=True)
        for child in children
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():  # join without a timeout would block Ctrl-C
                thread.join(0.2)
    except BaseException as error:
        _stop(queue, error)
        raise
    finally:
        for child in children:
            child.close()
    if queue.stopped is not None:
        raise queue.stopped


def _stop(queue: _Queue, error: BaseException) -> None:
    with queue.changed:
        queue.stopped = queue.stopped or error
        queue.changed.notify_all()


def _work(
    queue: _Queue,
    child: Child,
    folder: Path,
    cache: Path | None,
    task: str,
    tell: Callable[[Job, Mapping[str, Any]], None],
) -> None:
    last: tuple[Any, ...] | None = None
    while True:
        with queue.changed:
            while (job := queue.take(last)) is None:
                if not queue.pending or queue.stopped:
                    return
                queue.changed.wait()
            if queue.stopped:
                return
        try:
            report, facts = _call(child, job, folder, cache, task)
            with queue.changed:
                if queue.stopped:  # the case's process was ended along with the run
                    return
                _finish(folder, job, report, facts, tell)
            if facts.get("held", 0) > HELD_BYTES or "ended" in facts:
                child.close()  # its imports or changes may be half done
        except BaseException as error:
            _stop(queue, error)
            return
        finally:
            with queue.changed:
                queue.running.remove(job)
                queue.changed.notify_all()
        last = job.case.group


def _call(
    child: Child, job: Job, folder: Path, cache: Path | None, task: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs one case in a child; returns its report and the facts of its run."""
    case = job.case
    try:
        answer = child.call(
            task,
            folder.resolve() / store.CASES / f"{case.id}.html",
            seconds=case.time_limit,
            model=case.model,
            selectors=case.selectors(),
            cache=None if cache is None else str(cache.resolve()),
            memory=job.need,
            golden=case.golden,
        )
    except DiskFullError:
        raise
    except EndedError as error:
        kind, outcome, what = _told(error, case, job.need)
        return without_verdict(case, outcome, kind, what), {"ended": kind}
    except PortError as error:
        return without_verdict(case, FAIL, "port", str(error)), {"ended": "port"}
    except EdgeVerifyError as error:
        return without_verdict(case, UNCHECKED, "input", str(error)), {"ended": "input"}
    report = answer.pop("report", None)
    if report is not None:
        return report, answer
    kind, what = answer["ended"], answer["what"]
    if kind == "memory":
        what = _too_much(job.need)
    outcome = UNCHECKED if kind == "memory" else FAIL
    return without_verdict(case, outcome, kind, what), answer


def _told(error: EndedError, case: NightlyCase, need: int) -> tuple[str, str, str]:
    """Returns kind, outcome and message for a case whose process ended."""
    if error.how == "hang":
        return "timeout", UNCHECKED, f"did not finish within {case.time_limit:g} s and was ended"
    said = error.what.removeprefix("crashed the process that opened it ")
    if error.how == "crash" and tells_out_of_memory(said):
        return "memory", UNCHECKED, _too_much(need)
    if error.how == "crash" and error.status != signal.SIGKILL:
        return "crash", FAIL, f"crashed its process {said}; it was allowed {shown(need)} of memory"
    if error.how == "crash":
        what = "its process was killed (SIGKILL), as the system does when memory runs out"
        return "killed", UNCHECKED, what
    return "exit", UNCHECKED, f"its process ended with status {error.status}"


def _too_much(need: int) -> str:
    return (
        f"needs more memory than the {shown(need)} that it may take; give its table in the matrix "
        "another memory"
    )


def without_verdict(case: NightlyCase, outcome: str, kind: str, what: str) -> dict[str, Any]:
    """Makes the report, as a dict, of a case that gave none; its only finding says why."""
    finding = {"id": f"nightly.{kind}", "leg": "", "tap": "", "message": what}
    return {
        "schema": SCHEMA,
        "outcome": outcome,
        "case": {
            "model": case.model,
            "size": case.size,
            "checkpoint": case.checkpoint,
            "kv_layout": case.layout,
        },
        "environment": {},
        "legs": {},
        "audits": {},
        "invariants": [],
        "findings": [finding],
        "timings": {},
    }


def _finish(
    folder: Path,
    job: Job,
    report: dict[str, Any],
    facts: Mapping[str, Any],
    tell: Callable[[Job, Mapping[str, Any]], None],
) -> None:
    if not report["legs"]:
        facts = {"ended": "memory", **facts}
    report["nightly"] = {"id": job.case.id, "key": job.key, "recipe": job.case.recipe, **facts}
    store.write_case(folder, job.case.id, report)
    tell(job, report)
