"""Cases in processes: contained, within a budget, and kept as soon as they are done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgeverify.core.errors import DiskFullError
from edgeverify.suites.nightly import store
from edgeverify.suites.nightly.run import Job, run
from tests.suites.nightly import fake
from tests.suites.nightly.fake import MIB, job


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    path.write_text("")
    monkeypatch.setenv(fake.LOG, str(path))
    return path


def done(folder: Path, jobs: list[Job], **options: Any) -> dict[str, Mapping[str, Any]]:
    told: dict[str, Mapping[str, Any]] = {}
    given = {"workers": 2, "budget": 1024 * MIB, "task": fake.TASK, **options}
    with store.opened(folder):
        run(jobs, folder, tell=lambda j, report: told.update({j.case.id: report}), **given)
    return told


def test_each_case_is_kept_with_the_facts_of_its_run(tmp_path: Path) -> None:
    told = done(tmp_path, [job("a"), job("b", "bad", recipe="fp16")])
    assert {name: report["outcome"] for name, report in told.items()} == {"a": "pass", "b": "fail"}
    kept = json.loads((tmp_path / "cases" / "b.json").read_text())
    assert kept == told["b"]
    facts = {n: v for n, v in kept["nightly"].items() if n != "pid"}
    assert facts == {
        "id": "b",
        "key": "key of b",
        "recipe": "fp16",
        "seconds": 0.5,
        "peak_memory": 10 * MIB,
        "held": 0,
    }
    assert (tmp_path / "cases" / "a.html").read_text() == "a page"
    assert store.finished(tmp_path, "b", "key of b") == kept
    assert store.finished(tmp_path, "b", "another key") is None


def test_a_process_stays_warm(tmp_path: Path, log: Path) -> None:
    done(tmp_path, [job(str(i)) for i in range(6)], workers=1)
    assert len({line.split()[2] for line in log.read_text().splitlines()}) == 1


TOO_MUCH = "needs more memory than the 64 MiB that it may take; give its table in the matrix "
ENDS = {
    "crash": ("fail", "crash", "crashed its process (SIGSEGV); it was allowed 64 MiB of memory"),
    "killed": ("unchecked", "killed", "its process was killed (SIGKILL), as the system does when"),
    "exit": ("unchecked", "exit", "its process ended with status 7"),
    "hang": ("unchecked", "timeout", "did not finish within 0.8 s and was ended"),
    "port": ("fail", "port", "x.py: has no 'PORT'"),
    "input": ("unchecked", "input", "x.safetensors: is damaged"),
    "error": ("fail", "error", "raised TypeError: no (x.py:3)"),
    "memory": ("unchecked", "memory", TOO_MUCH),
    "native": ("unchecked", "memory", TOO_MUCH),
}


def test_what_ends_a_case_ends_no_other(tmp_path: Path) -> None:
    jobs = [job(name, name, time_limit=0.8 if name == "hang" else 20.0) for name in ENDS]
    mixed = [one for bad in jobs for one in (bad, job(f"after-{bad.case.id}"))]
    told = done(tmp_path, mixed)
    for name, (outcome, kind, words) in ENDS.items():
        report = told[name]
        assert report["outcome"] == outcome, name
        assert report["findings"][0]["id"] == f"nightly.{kind}"
        assert report["findings"][0]["message"].startswith(words)
        assert report["legs"] == {}
        # It has no verdict, so that a run that goes on tries it again.
        assert store.finished(tmp_path, name, f"key of {name}") is None
        assert told[f"after-{name}"]["outcome"] == "pass"


def test_cases_together_fit_the_budget(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fake.PAUSE, "0.6")
    jobs = [job("big", need=90 * MIB), *(job(f"s{i}", need=40 * MIB) for i in range(4))]
    done(tmp_path, jobs, workers=3, budget=100 * MIB)
    needs = {one.case.id: one.need for one in jobs}
    held, most, together = 0, 0, 0
    count = 0
    for line in log.read_text().splitlines():
        what, name, _ = line.split()
        sign = 1 if what == "begin" else -1
        held += sign * needs[name]
        count += sign
        most, together = max(most, held), max(together, count)
    assert most <= 100 * MIB
    assert together == 2


def test_what_never_fits_is_unchecked_with_the_figure(tmp_path: Path, log: Path) -> None:
    told = done(tmp_path, [job("big", need=3 * 2**30), job("a")], budget=2**30)
    assert told["big"]["outcome"] == "unchecked"
    assert told["big"]["findings"][0]["message"] == (
        "needs about 3 GiB of memory, more than the 1 GiB of --memory-budget"
    )
    assert "big" not in log.read_text()
    assert told["a"]["outcome"] == "pass"


def test_processes_begin_with_different_conversions(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that need one conversion would wait for each other."""
    monkeypatch.setenv(fake.PAUSE, "0.3")
    jobs = [job(f"{size}{n}", size=size) for size in "ab" for n in range(3)]
    done(tmp_path, jobs, workers=2)
    begun = [line.split() for line in log.read_text().splitlines() if line.startswith("begin")]
    assert {name[0] for _, name, _ in begun[:2]} == {"a", "b"}


def test_a_full_disk_in_a_process_ends_the_run_and_keeps_what_is_done(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="the disk is full"):
        done(tmp_path, [job("a"), job("full", "full"), job("b", "bad")], workers=1)
    assert store.finished(tmp_path, "a", "key of a") is not None
    assert [path.name for path in (tmp_path / "cases").glob("*.json")] == ["a.json"]


def test_a_result_of_before_is_forgotten_when_a_case_begins(tmp_path: Path) -> None:
    done(tmp_path, [job("a"), job("full", "good")])
    with pytest.raises(DiskFullError):
        done(tmp_path, [job("full", "full")])
    assert store.read_case(tmp_path, "full") is None
    assert store.read_case(tmp_path, "a") is not None
