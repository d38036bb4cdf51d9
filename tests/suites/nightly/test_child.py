"""The child's side, with a check that only raises."""

from __future__ import annotations

import errno
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeverify.core.errors import CheckpointError, DiskFullError
from edgeverify.core.leg import Leg
from edgeverify.core.results import PASS, LegResult, Report
from edgeverify.suites.nightly import child

BOUND = 64 * 2**40


@pytest.fixture(autouse=True)
def unbounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves this process's own limits, and ends no watch."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    child._watched.set()
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def check(
    page: Path,
    outcome: Any,
    monkeypatch: pytest.MonkeyPatch,
    memory: int = BOUND,
    golden: str | None = None,
) -> dict[str, Any]:
    def verify(model: str, **selectors: Any) -> Report:
        assert (model, selectors["recipes"]) == ("gemma2", ("fp16",))
        assert selectors.get("golden") == (Path(golden) if golden else None)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    # In place of the module, which imports torch.
    monkeypatch.setitem(sys.modules, "edgeverify.suites.check", SimpleNamespace(verify=verify))
    selectors = {"recipes": ["fp16"], "size": "tiny", "checkpoint": None}
    return child.check_case(
        page, model="gemma2", selectors=selectors, cache=None, memory=memory, golden=golden
    )


def test_a_report_and_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    legs = {"authoring": LegResult(Leg.of("authoring"), PASS, {"rms": 1.5, "row": 4.0})}
    page = tmp_path / "x.html"
    answer = check(page, Report({}, {}, legs), monkeypatch)
    assert answer["report"]["outcome"] == PASS
    assert answer["seconds"] >= 0
    assert answer["peak_memory"] > 0
    assert page.read_text().startswith("<!doctype html>")
    check(page, Report({}, {}, legs), monkeypatch, golden="kept")


@pytest.mark.parametrize(
    ("error", "kind", "what"),
    [
        (MemoryError(), "memory", ""),
        (RuntimeError("std::bad_alloc"), "memory", ""),
        (ImportError("x.so: failed to map segment from shared object"), "memory", ""),
        (TypeError("no"), "error", "raised TypeError: no (test_child.py:"),
        (SystemExit(0), "error", "raised SystemExit: 0 (test_child.py:"),
    ],
)
def test_what_a_check_raises(
    error: BaseException, kind: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = check(tmp_path / "x.html", error, monkeypatch)
    assert answer["ended"] == kind
    assert answer["what"].startswith(what)
    assert "report" not in answer


def test_bad_input_and_a_full_disk_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        check(tmp_path / "x.html", CheckpointError("damaged"), monkeypatch)
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskFullError, match="the disk is full"):
        check(tmp_path / "x.html", full, monkeypatch)


def test_memory_is_bounded_for_this_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for memory in (BOUND, 2 * BOUND):
        check(tmp_path / "x.html", TypeError("no"), monkeypatch, memory)
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == memory
