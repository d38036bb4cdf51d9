"""Which faults are planned for which ports."""

from __future__ import annotations

from edgeverify.suites.selftest.faults.catalogue import FAULTS
from edgeverify.suites.selftest.matrix import FAULTS_A_JOB, Job, plan
from edgeverify_models import CATALOGUE


def pairs(jobs: list[Job]) -> list[tuple[str, str]]:
    return [(job.port, name) for job in jobs for name in job.faults]


def test_the_whole_matrix_has_every_fault_on_every_port_that_it_applies_to() -> None:
    planned = pairs(plan(list(CATALOGUE), FAULTS))
    assert sorted(planned) == sorted((port, f.name) for f in FAULTS for port in f.ports)


def test_quick_has_every_fault_once_and_every_port() -> None:
    planned = pairs(plan(list(CATALOGUE), FAULTS, quick=True))
    assert sorted(name for _, name in planned) == sorted(fault.name for fault in FAULTS)
    assert {port for port, _ in planned} == set(CATALOGUE)


def test_quick_converts_as_few_models_as_it_can() -> None:
    files = {fault.name for fault in FAULTS if fault.file}
    planned = pairs(plan(list(CATALOGUE), FAULTS, quick=True))
    first = next(iter(CATALOGUE))
    assert sum(port != first for port, name in planned if name in files) <= 4


def test_each_leg_that_is_tried_is_also_run_unchanged_once_a_port() -> None:
    jobs = plan(["tinyllama"], FAULTS)
    assert [job.clean for job in jobs] == [("authoring", "conversion")] + [()] * (len(jobs) - 1)
    ported = [fault for fault in FAULTS if fault.port]
    assert plan(["tinyllama"], ported)[0].clean == ("authoring",)


def test_a_job_is_small() -> None:
    assert max(len(job.faults) for job in plan(["gemma2"], FAULTS)) <= FAULTS_A_JOB
