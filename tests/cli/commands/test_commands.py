"""``edgeverify inspect`` and ``edgeverify check-artifact``, from the command line."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgeverify.cli.main import main
from edgeverify.core.results import Report
from tests.litert.flatbuffer import made


@pytest.fixture
def small(tmp_path: Path) -> Path:
    weight = made.tensor("w", (3, 4), made.TYPES.FLOAT32, 1)
    data = np.ones((3, 4), np.float32).tobytes()
    return made.write(tmp_path / "x.tflite", "FULLY_CONNECTED", weight, data, (1, 4), (1, 3))


def test_inspect_shows_and_writes(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "told.json"
    assert main(["inspect", str(small), "--json", str(target)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{small}  ")
    assert "is no language model of a form that is known here" in out
    assert "1 FULLY_CONNECTED" in out
    assert json.loads(target.read_text())["model"]["weights"][0]["shape"] == [3, 4]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file; expected a .tflite or .litertlm file"),
        (b"something else", "cannot be read as a .tflite (it does not begin as one)"),
        (b"PK\x03\x04 and more", "is a zip, such as a MediaPipe .task; expected a .tflite or"),
        (b"LITERTLM", "cannot be read as a .litertlm (it was cut short)"),
        (b"\x08\0\0\0TFL3\xff\xff\xff\xff", "cannot be read as a .tflite (its table is damaged"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.tflite"
    if content is not None:
        path.write_bytes(content)
    for command in (["inspect"], ["check-artifact", "--checkpoint", str(tmp_path)]):
        assert main([*command, str(path)]) == 2
        err = capsys.readouterr().err
        assert f"{path}: {words}" in err
        assert err.count("\n") == 1


def test_inspect_takes_less_than_a_second(small: Path) -> None:
    """Of the processor, the child's included: 0.5 s where it was written."""
    command = [sys.executable, "-m", "edgeverify.cli.main", "inspect", str(small)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


class FakeCheck(ModuleType):
    """Stands in for ``edgeverify.legs.foreign.check``."""

    SECONDS = 600.0

    def __init__(self, report: Report) -> None:
        super().__init__("edgeverify.legs.foreign.check")
        self.report, self.asked = report, {}

    def verify_artifact(self, path: Path, **options: Any) -> Report:
        self.asked = {"path": path, **options}
        return self.report


@pytest.mark.parametrize(("outcome", "status"), [("pass", 0), ("fail", 1), ("unchecked", 3)])
def test_check_artifact_reports(
    outcome: str,
    status: int,
    report: Callable[..., Report],
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake = FakeCheck(report(conversion=outcome, reason="why"))
    monkeypatch.setitem(sys.modules, "edgeverify.legs.foreign.check", fake)
    monkeypatch.setattr("edgeverify.core.quiet.QUIET_ENVIRONMENT", {})
    files = [f"--{name}={tmp_path / name}" for name in ("json", "html", "junit")]
    given = ["--checkpoint", "there", "--model", "tinyllama", "--time-limit", "9", "--seed", "4"]
    assert main(["check-artifact", str(small), *given, *files]) == status
    assert capsys.readouterr().out.startswith(outcome.upper())
    assert json.loads((tmp_path / "json").read_text())["outcome"] == outcome
    assert (tmp_path / "html").exists()
    assert (tmp_path / "junit").exists()
    kept = {key: fake.asked[key] for key in ("path", "checkpoint", "port", "seconds", "seed")}
    assert kept == {
        "path": small,
        "checkpoint": "there",
        "port": "tinyllama",
        "seconds": 9.0,
        "seed": 4,
    }
    assert fake.asked["decode_steps"] == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "the following arguments are required: --checkpoint"),
        (["--checkpoint", "x", "--kernel", "gpu"], "--kernel: there is no 'gpu'"),
        (["--checkpoint", "x", "--model", "tinylama"], "did you mean 'tinyllama'"),
        (["--checkpoint", "x", "--time-limit", "0"], "--time-limit: got 0"),
        (["--checkpoint", "x", "--decode-steps", "two"], "invalid int value: 'two'"),
    ],
)
def test_bad_options_of_check_artifact(
    options: list[str], words: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-artifact", str(small), *options]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
