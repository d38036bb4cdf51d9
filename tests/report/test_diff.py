from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeverify.cli.main import main
from edgeverify.core.results import Report
from edgeverify.report import summary
from edgeverify.report.json import to_dict


@pytest.fixture
def written(report: Callable[..., Report], tmp_path: Path) -> Callable[..., str]:
    def write(name: str, *outcomes: str, change: Callable[[Any], None] | None = None) -> str:
        told = report(*outcomes).to_dict()
        if change:
            change(told)
        path = tmp_path / name
        path.write_text(json.dumps(told))
        return str(path)

    return write


def test_the_same_report_has_no_difference(
    written: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = written("a.json")
    assert main(["diff", path, path]) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_a_leg_that_fails_now_is_a_regression(
    written: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = written("a.json"), written("b.json", "fail")
    assert main(["diff", a, b]) == 1
    assert "✗  tinyllama tiny authoring" in capsys.readouterr().out
    assert main(["diff", b, a]) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["legs"].pop("conversion"),
        lambda told: told["legs"]["authoring"]["taps"].pop(),
        lambda told: told["legs"]["authoring"]["worst"].update(error_ratio="inf"),
    ],
)
def test_what_is_gone_or_far_off_is_a_regression(
    written: Callable[..., str], change: Callable[[Any], None]
) -> None:
    assert main(["diff", written("a.json"), written("b.json", change=change)]) == 1


def test_versions_are_told_but_are_no_regression(
    written: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    b = written("b.json", change=lambda told: told["environment"].update(torch="2.14.0"))
    assert main(["diff", written("a.json"), b]) == 0
    assert "2.14.0" in capsys.readouterr().out


def test_a_case_that_a_nightly_run_lost_is_a_regression(
    written: Callable[..., str], tmp_path: Path
) -> None:
    case = json.loads(Path(written("x.json")).read_text())
    for name, cases in (("a", {"1": case, "2": case}), ("b", {"1": case})):
        told = {"schema": 1, "kind": "nightly", "started": "2026-11-01T00:00:00Z",
                "outcome": "pass", "environment": {}, "cases": cases}  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    assert main(["diff", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert main(["diff", str(tmp_path / "b.json"), str(tmp_path / "a.json")]) == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "legs": {}}'])
def test_a_bad_file_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert main(["diff", str(path), str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["history", str(tmp_path)]) == 2


def test_the_history_is_by_time(
    written: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def at(time: str) -> Callable[[Any], None]:
        return lambda told: told["environment"].update(time=time)

    written("a.json", "fail", change=at("2026-11-02T00:00:00+00:00"))
    written("b.json", change=at("2026-11-01T01:00:00+02:00"))
    page = tmp_path / "page.html"
    assert main(["history", str(tmp_path), "--html", str(page)]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [
        ["2026-10-31T23:00:00+00:00", "pass"],
        ["2026-11-02T00:00:00+00:00", "fail"],
    ]
    assert "<svg" in page.read_text(encoding="utf-8")


def test_the_job_summary_has_legs_and_findings(
    report: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    summary.append(summary.markdown({"a|b": report("fail").to_dict(), "c": report().to_dict()}))
    text = path.read_text(encoding="utf-8")
    assert "1 of 2 reports passed" in text
    assert "| a\\|b | **all** | ❌ fail |  |  |" in text
    assert "Look at the key projection." in text


def test_the_job_summary_has_the_answer(report: Callable[..., Report]) -> None:
    told = {"x": to_dict(report("fail", command="edgeverify check my_port.py:PORT"))}
    text = summary.markdown(told)
    assert text.splitlines()[-5:] == [
        "**x**",
        "",
        "- cause: not named; the error: relative error 7e-06, near float32's own rounding",
        "- where: authoring (Hugging Face → port): attn.k of block 1; first at "
        "prefill.0/blocks.1.attn.k: error 71.0 times float32 noise (allowed 1.50)",
        "- next: look in my\\_port.py at the key projection, then: "
        "`edgeverify check my_port.py:PORT`",
    ]
    assert "Look at" not in text
