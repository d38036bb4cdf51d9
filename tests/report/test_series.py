"""Series of reports: single ones and nightly runs, as lines and as a difference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeverify.cli.main import main
from edgeverify.core.results import Report

Night = Callable[..., Path]


@pytest.fixture
def night(report: Callable[..., Report], tmp_path: Path) -> Night:
    """``night(3, a="pass", b="fail")`` writes the nightly run of the third, with two cases."""

    def write(day: int, version: str = "5.23.0", **cases: str) -> Path:
        environment = {"transformers": version}
        told: dict[str, Any] = {
            "schema": 1,
            "kind": "nightly",
            "started": f"2026-11-0{day}T00:00:00+00:00",
            "outcome": "fail" if "fail" in cases.values() else "pass",
            "environment": environment,
            "cases": {},
        }
        for name, outcome in cases.items():
            case = report(outcome).to_dict()
            told["cases"][name] = {**case, "environment": environment}
        path = tmp_path / "nights" / str(day) / "nightly.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(told))
        return path

    return write


def test_a_night_is_one_line_and_names_what_is_no_pass(
    night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    night(1, a="pass", b="pass")
    night(2, a="fail", b="pass")
    night(3, a="fail", b="pass")
    night(4, a="pass")
    assert main(["history", str(tmp_path / "nights")]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    told = [" ".join(part.strip() for part in line if part.strip()) for line in lines[1:]]
    ratios = "authoring 0.68, conversion 0.68"
    failed = "authoring 47.3, conversion 0.68"
    assert told == [
        f"2026-11-01T00:00:00+00:00 pass nightly run of 2 cases: 2 pass {ratios}",
        f"2026-11-02T00:00:00+00:00 fail nightly run of 2 cases: 1 fail, 1 pass {failed}",
        f"fail a (was pass) {failed}",
        f"2026-11-03T00:00:00+00:00 fail nightly run of 2 cases: 1 fail, 1 pass {failed}",
        f"fail a {failed}",
        f"2026-11-04T00:00:00+00:00 pass nightly run of 1 case: 1 pass {ratios}",
        f"pass a (was fail) {ratios}",
        "– b (is gone)",
    ]


def test_the_page_has_a_series_for_each_case_of_a_night(night: Night, tmp_path: Path) -> None:
    night(1, a="pass", b="pass")
    night(2, a="fail", b="pass")
    page = tmp_path / "page.html"
    assert main(["history", str(tmp_path / "nights"), "--html", str(page)]) == 0
    text = page.read_text()
    assert "2 reports of 2 subjects" in text
    assert text.count("<h2>") == 2
    assert text.count("2 runs from") == 2


def test_a_version_that_changed_for_a_whole_night_is_told_once(
    night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = night(1, a="pass", b="pass"), night(2, "5.24.0", a="pass", b="pass")
    assert main(["diff", str(before), str(after)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("0 regressions among 1 difference")
    assert out.count("5.24.0") == 1
