"""What a person reads of typical failures, word for word, from real checks of tiny ports.

``EDGEVERIFY_UPDATE_SNAPSHOTS=1 pytest tests/report/test_snapshots.py`` writes them anew; read them
as a stranger would before they are kept.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from edgeverify.cli.main import main
from edgeverify.report.answer_text import LINES, WIDTH
from tests.report.failures import FAILURES, install, port_file

SNAPSHOTS = Path(__file__).parent / "snapshots"
LABELS = ("cause", "where", "next", "✓", "✗", "?")
# What float32 rounding decides differs between machines: instruction sets sum in other orders. How
# often an error is the noise, how many taps are past it, and the worst of right ones are masked.
# Values of configs and weights, positions, blocks and taps are exact everywhere.
MASKED = (
    (r"error \S+ times", "error # times"),
    (r"worst \S+ of", "worst # of"),
    (r"\d+ of (\d+) taps differ", r"# of \1 taps differ"),
    (r"relative error [^\s,]+", "relative error #"),
    (r"KL [^\s,]+", "KL #"),
    # What the libraries take in memory, and what is free.
    (r"about \S+ GiB of memory", "about # GiB of memory"),
    (r"\(\S+ GiB without\)", "(# GiB without)"),
)


def masked(text: str) -> str:
    for pattern, told in MASKED:
        text = re.sub(pattern, told, text)
    return text


def labels(lines: list[str]) -> list[str]:
    """The label of each line that has one; equal neighbours once."""
    found = [label for line in lines[1:] for label in LABELS if line.startswith(label)]
    marks = ["part" if label in "✓✗?" else label for label in found]
    return list(dict.fromkeys(marks))


def test_what_differs_between_machines_is_masked() -> None:
    one = "error 9.6e+03 times float32 noise (allowed 1.50)\n396 of 473 taps differ"
    other = "error 9.5e+03 times float32 noise (allowed 1.50)\n395 of 473 taps differ"
    assert masked(one) == masked(other)
    assert masked(one) != masked(one.replace("473", "474"))


def test_every_snapshot_is_of_a_failure() -> None:
    assert {path.stem for path in SNAPSHOTS.glob("*.txt")} == set(FAILURES)


@pytest.mark.parametrize("path", sorted(SNAPSHOTS.glob("*.txt")), ids=lambda path: path.stem)
def test_a_snapshot_is_short_and_in_order(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= WIDTH
    assert lines[0].startswith(("FAIL  my_port:PORT", "UNCHECKED  my_port:PORT"))
    assert labels(lines) == ["cause", "where", "next", "part"]
    assert sum("edgeverify check my_port.py:PORT" in line for line in lines) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_told_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = FAILURES[name]
    monkeypatch.chdir(tmp_path)
    install(failure, monkeypatch.setattr, tmp_path)
    (tmp_path / "my_port.py").write_text(port_file(name))
    status = main(["check", "my_port.py:PORT", "--size", "tiny", *failure.options])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert status == (1 if text.startswith("FAIL") else 3)
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= WIDTH
    kept = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("EDGEVERIFY_UPDATE_SNAPSHOTS"):
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(masked(text), encoding="utf-8")
    assert masked(text) == kept.read_text(encoding="utf-8")
