"""``eval`` and ``bench`` on the command line, without running a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeverify.cli.main import main
from edgeverify.core.results import FAIL, PASS, UNCHECKED
from edgeverify.suites.bench import run as bench_module
from edgeverify.suites.bench.run import Bench
from edgeverify.suites.bench.run import Row as BenchRow
from edgeverify.suites.quality.gate import Condition, Gates
from edgeverify.suites.quality.model import Evaluation, Row
from edgeverify.suites.quality.statistics import Estimate


def evaluation(outcome: str) -> Evaluation:
    model = {"name": "m", "size": "s", "checkpoint": "c", "window": 8, "kernel": "k", "threads": 1}
    reference = Estimate(2.0, 1.0, 3.0)
    rows = (Row("float32", outcome, reason="" if outcome == PASS else "so"),)
    return Evaluation({}, model, "a text", 7, reference, 0.1, rows, "", {})


class Calls:
    """Stands in for the modules that evaluate and that measure."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.outcome = PASS

    Asked = SimpleNamespace

    def evaluate(self, model: str, chosen: Any, asked: Any, **given: Any) -> Evaluation:
        self.given = {"model": model, "chosen": chosen, **vars(asked), **given}
        return evaluation(self.outcome)

    def bench_model(self, subject: Any, chosen: Any, kernels: Any, **given: Any) -> Bench:
        return self.bench_file(subject, kernels, chosen=chosen, **given)

    def bench_file(self, subject: Any, kernels: Any, **given: Any) -> Bench:
        self.given = {"subject": subject, "kernels": kernels, **given}
        return Bench("x", 1, 5, (BenchRow("float32", "xnnpack", self.outcome),), {})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()
    monkeypatch.setitem(sys.modules, "edgeverify.suites.quality.run", found)
    for name in ("bench_model", "bench_file"):
        monkeypatch.setattr(bench_module, name, getattr(found, name))
    return found


@pytest.mark.parametrize("verb", ["eval", "bench"])
@pytest.mark.parametrize(("outcome", "status"), [(PASS, 0), (FAIL, 1), (UNCHECKED, 3)])
def test_the_exit_status_is_the_outcome(
    verb: str, outcome: str, status: int, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.outcome = outcome
    assert main([verb, "tinyllama"]) == status
    assert "float32" in capsys.readouterr().out


def test_what_eval_is_given(calls: Calls, tmp_path: Path) -> None:
    text, report, table = tmp_path / "t.txt", tmp_path / "r.json", tmp_path / "t.md"
    text.write_text("some")
    options = ["--recipe", "all", "--text", str(text), "--tokens", "99", "--window", "64"]
    options += ["--gate", "top1>0.9", "--json", str(report), "--markdown", str(table)]
    assert main(["eval", "tinyllama", *options]) == 0
    assert calls.given["model"] == "tinyllama"
    assert len(calls.given["chosen"].recipes) == 6
    assert (calls.given["text"], calls.given["tokens"], calls.given["window"]) == (text, 99, 64)
    assert calls.given["gates"] == Gates((Condition("top1", ">", 0.9),), source="--gate")
    assert json.loads(report.read_text())["positions"] == 7
    assert table.read_text().startswith("**PASS** m s · c · a text: 7 positions")


def test_gates_beside_a_port_are_found_and_an_option_goes_before(
    calls: Calls, tmp_path: Path
) -> None:
    port = tmp_path / "mine.py"
    port.write_text("")
    (tmp_path / "mine.gates.toml").write_text('[fp16]\ngate = "mean_kl<1e-4"\n')
    assert main(["eval", f"{port}:PORT", "--recipe", "fp16"]) == 0
    assert calls.given["gates"].of("fp16") == (Condition("mean_kl", "<", 1e-4),)
    assert main(["eval", f"{port}:PORT", "--gate", "top1>0"]) == 0
    assert calls.given["gates"].of("fp16") == (Condition("top1", ">", 0.0),)


def test_quiet_shows_a_pass_in_one_line(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tinyllama", "-q"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_what_bench_is_given(calls: Calls, tmp_path: Path) -> None:
    options = ["--kernel", "builtin", "--kernel", "xnnpack", "--repeats", "7", "--threads", "3"]
    assert main(["bench", "tinyllama", "--recipe", "fp16", *options]) == 0
    assert calls.given["subject"] == "tinyllama"
    assert calls.given["chosen"].recipes == ("fp16",)
    assert calls.given["kernels"] == ["builtin", "xnnpack"]
    assert (calls.given["repeats"], calls.given["threads"]) == (7, 3)
    path = tmp_path / "x.tflite"
    path.write_bytes(b"")
    assert main(["bench", str(path)]) == 0
    assert calls.given["subject"] == path


BAD = {
    "eval": "the following arguments are required: MODEL",
    "eval nope": "there is no model 'nope'",
    "eval tinyllama --tokens 1": "--tokens: got '1'; expected a whole number of 2 or more",
    "eval tinyllama --window x": "--window: got 'x'; expected a whole number from 2 to 1048576",
    "eval tinyllama --text nowhere.txt": "--text nowhere.txt: there is no such file",
    "eval tinyllama --gate mean_kl": "--gate: cannot read 'mean_kl'; expected conditions like",
    "eval tinyllama --gate-file no.toml": "--gate-file no.toml: cannot be read (No such file or",
    "eval tinyllama --gate top1>0 --gate-file x": "argument --gate-file: not allowed with",
    "eval tinyllama --decode-steps 3": "unrecognized arguments: --decode-steps 3",
    "eval tinyllama --json no/where.json": "--json no/where.json: the folder 'no' does not exist",
    "bench": "the following arguments are required: FILE|MODEL",
    "bench no.tflite": "no.tflite: there is no such file; expected a .tflite",
    "bench tinyllama --kernel gpu": "--kernel: there is no 'gpu'; expected one of xnnpack",
    "bench tinyllama --repeats 0": "--repeats: got '0'; expected a whole number from 1 to 1000",
    "bench tinyllama --threads -1": "--threads: got '-1'; expected a whole number from 1 to 1024",
    "bench {file} --recipe fp16": "{file}: a file has its weights and its recipe already; expected",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_usage_is_one_line_and_exit_2(
    line: str, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.tflite"
    file.write_bytes(b"")
    assert main([part.format(file=file) for part in line.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"edgeverify: error: {BAD[line].format(file=file)}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert calls.given == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["bench", "x.litertlm"],
            "bench x.litertlm: measures no .litertlm; expected a .tflite",
        ),
        (["bench", "x.task"], "bench x.task: measures no .task; expected a .tflite, or a model"),
        (["check", "x.litertlm"], "a file is checked by: edgeverify check-artifact FILE"),
        (["eval", "x.tflite"], "a file is checked by: edgeverify check-artifact FILE"),
    ],
)
def test_a_file_in_the_place_of_a_model_is_told_where_to_go(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
