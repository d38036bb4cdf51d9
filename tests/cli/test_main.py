from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeverify.cli.commands import VERBS
from edgeverify.cli.main import main
from edgeverify.core.errors import CheckpointError, UsageError
from edgeverify.core.results import Report

NAMES = "gemma1, gemma2, tinyllama, phi2, openelm, smollm, smollm2"


def one_error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr holds, which must be a single line of the standard form."""
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("edgeverify: error: ")
    return lines[0].removeprefix("edgeverify: error: ")


FORMS = "package.module:ATTR or path/to/file.py:ATTR"

BAD = {
    "check tinylama": f"there is no model 'tinylama'; expected one of {NAMES}; or {FORMS}; did you "
    "mean 'tinyllama'?",
    "check port.py": f"there is no model 'port.py'; expected one of {NAMES}; or {FORMS}; name the "
    "port in the file: port.py:PORT",
    "check nowhere/port.py:PORT": "nowhere/port.py: there is no such file; expected MODEL to be a "
    "registered name, package.module:ATTR or path/to/file.py:ATTR",
    "check :PORT": f"MODEL: cannot read ':PORT'; expected a registered name, {FORMS}",
    "check tinyllama --size 3b": "--size of tinyllama: there is no '3b'; expected one of tiny, "
    "1.1b",
    "check tinyllama --recipe int7": "--recipe: there is no 'int7'; expected one of float32, "
    "fp16, dynamic_int8, weight_only_int8, dynamic_int4_block32, dynamic_int4_block128, all; or a "
    "JSON file of ai-edge-quantizer, or path/to/file.py:ATTR or package.module:ATTR with a "
    "GenerativeQuantRecipe or QuantConfig",
    "check tinyllama --backend tflit": "--backend: there is no 'tflit'; expected one of reference, "
    "reauthored, tflite; did you mean 'tflite'?",
    "check tinyllama --backend reference": "--backend: the reference alone has nothing to be "
    "compared with; expected reauthored, tflite or both",
    "check tinyllama --kv-layout transpose": "--kv-layout: there is no 'transpose'; expected one "
    "of default, transposed; did you mean 'transposed'?",
    "check tinyllama --kernel xnpack": "--kernel: there is no 'xnpack'; expected one of xnnpack, "
    "builtin, reference; did you mean 'xnnpack'?",
    "check tinyllama --prefill 0": "--prefill: got '0'; expected a whole number from 1 to 1048576",
    "check tinyllama --prefill 16 --prefill 16": "--prefill: 16 is given 2 times; expected each "
    "length once",
    "check tinyllama --decode-steps -1": "--decode-steps: got '-1'; expected a whole number from "
    "1 to 1048576",
    "check tinyllama --seed 1.5": "--seed: got '1.5'; expected a whole number from 0 to 4294967295",
    "check tinyllama --kv-cache-len 20": "--prefill: a prefill of 32 tokens does not fit a KV "
    "cache of 20 rows; expected at most 20; take a shorter --prefill or a longer --kv-cache-len",
    "check tinyllama --prefill 300 --prompt hi --kv-cache-len 200": "--prefill: a prefill of 300 "
    "tokens does not fit a KV cache of 200 rows; expected at most 200; take a shorter --prefill or "
    "a longer --kv-cache-len",
    "check tinyllama --json nowhere/r.json": "--json nowhere/r.json: the folder 'nowhere' does not "
    "exist; expected a file in a folder that exists; make the folder first",
    "check tinyllama --html .": "--html .: is a folder; expected a file name",
    "check tinyllama --json r --junit r": "--junit r: --json names the same file; expected two "
    "files",
    "check tinyllama --cache file": "--cache file: is a file; expected a folder",
    "check tinyllama --sead 1": "unrecognized arguments: --sead 1; see edgeverify --help",
    "check": "the following arguments are required: MODEL; see edgeverify check --help",
    "convert tinyllama": "the following arguments are required: --output; see edgeverify convert "
    "--help",
    "convert tinyllama --output file": "--output file: is a file; expected a folder",
    "convert tinyllama --output file/x": "--output file: is a file; expected a folder",
}


@pytest.mark.parametrize("line", BAD, ids=str)
def test_bad_usage_is_one_line_and_exit_2_before_anything_runs(
    line: str,
    fake_verify: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(line.split()) == 2
    assert one_error_line(capsys) == BAD[line]
    assert fake_verify.calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_its_module_and_its_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0
    assert text.startswith(f"usage: edgeverify {name} ")
    assert VERBS[name].help[1:30] in text.replace("\n", " ")
    assert "--debug" in text
    assert ("--quiet" in text) == VERBS[name].loudness


def test_the_help_of_all_verbs_imports_none_of_them() -> None:
    script = (
        "import sys\nfrom edgeverify.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name.startswith('edgeverify.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == (
        "['edgeverify.cli', 'edgeverify.cli.commands', 'edgeverify.cli.main', 'edgeverify.core', "
        "'edgeverify.core.errors']"
    )


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        (("pass", "pass"), 0),
        (("fail", "pass"), 1),
        (("pass", "unchecked"), 3),
        (("unchecked", "fail"), 1),
    ],
)
def test_exit_status_tells_the_outcome(
    outcomes: tuple[str, str],
    status: int,
    fake_verify: Any,
    report: Callable[..., Report],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_verify.result = report(*outcomes, reason="no such tensor")
    assert main(["check", "tinyllama"]) == status
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith({0: "PASS", 1: "FAIL", 3: "UNCHECKED"}[status])
    assert err == ""


def test_the_selectors_reach_verify(fake_verify: Any, tmp_path: Path) -> None:
    line = (
        "check tinyllama --size 1.1b --checkpoint org/name --recipe float32 --backend tflite"
        " --kv-layout transposed --prefill 8 --prefill 4 --decode-steps 3 --seed 7"
        " --kernel builtin --mask-as-input --no-prefill-logits --kv-cache-len 64"
        " --trust-remote-code -v --invariants --profile ci --runtime tf_lite --runtime litert_lm"
        " --memory-budget 8GiB"
    )
    assert main([*line.split(), "--prompt", "The capital", "--cache", str(tmp_path)]) == 0
    (call,) = fake_verify.calls
    assert call.pop("progress").__class__.__name__ == "Progress"
    assert call == {
        "port": "tinyllama",
        "invariants": True,
        "golden": None,
        "profile": "ci",
        "size": "1.1b",
        "checkpoint": "org/name",
        "recipes": ("float32",),
        "backends": ("tflite",),
        "runtimes": ("tf_lite", "litert_lm"),
        "kv_layout": "transposed",
        "prefill": (4, 8),
        "decode_steps": 3,
        "seed": 7,
        "kernel": "builtin",
        "mask_as_input": True,
        "prefill_logits": False,
        "prompt": "The capital",
        "kv_cache_len": 64,
        "trust_remote_code": True,
        "cache": tmp_path,
        "token_seed": None,
        "memory_budget": 8 * 2**30,
        "verbose": True,
    }


def test_the_defaults_are_those_of_verify(fake_verify: Any) -> None:
    main(["check", "tinyllama"])
    (call,) = fake_verify.calls
    assert call["backends"] == ("reference", "reauthored", "tflite")
    assert call["prefill"] == (16, 32)
    assert (call["decode_steps"], call["seed"], call["kernel"]) == (8, 0, "xnnpack")
    assert call["size"] is call["checkpoint"] is call["kv_cache_len"] is call["cache"] is None


def test_report_files_are_written_after_the_run(fake_verify: Any, tmp_path: Path) -> None:
    paths = {name: tmp_path / f"r.{name}" for name in ("json", "html", "junit")}
    options = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    assert main(["check", "tinyllama", *options]) == 0
    assert json.loads(paths["json"].read_text())["outcome"] == "pass"
    assert paths["html"].read_text().startswith("<!doctype html>")
    assert paths["junit"].read_text().startswith("<?xml")
    assert sorted(tmp_path.iterdir()) == sorted(paths.values())


def test_a_report_that_cannot_be_written_does_not_hide_the_verdict(
    fake_verify: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(report: Report, paths: Any, earlier: Any) -> None:
        raise UsageError("cannot be written", where="r.json")

    monkeypatch.setattr("edgeverify.cli.commands.show_report.write_reports", full)
    assert main(["check", "tinyllama", "--json", str(tmp_path / "r.json")]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("PASS")
    assert err == "edgeverify: error: r.json: cannot be written\n"


def test_bad_input_found_by_the_run_is_exit_2_and_writes_nothing(
    fake_verify: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_verify.result = CheckpointError("is\nempty", where="w", expected="weights", fix="copy it")
    assert main(["check", "tinyllama", "--json", str(tmp_path / "r.json")]) == 2
    assert one_error_line(capsys) == "w: is empty; expected weights; copy it"
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_ends_the_process_does_not_choose_the_status(
    fake_verify: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_verify.result = SystemExit(0)
    assert main(["check", "tinyllama"]) == 2
    assert one_error_line(capsys).startswith("the port: called sys.exit(0) while it ran; expected")


def test_an_unexpected_error_asks_for_a_report(
    fake_verify: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_verify.result = ZeroDivisionError("division\nby zero")
    assert main(["check", "tinyllama"]) == 70
    assert one_error_line(capsys) == (
        "unexpected ZeroDivisionError: division by zero; this is a fault of edgeverify: please "
        "report it with the traceback that --debug shows"
    )
    with pytest.raises(ZeroDivisionError):
        main(["check", "tinyllama", "--debug"])


def test_an_interrupt_is_one_line(fake_verify: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake_verify.result = KeyboardInterrupt()
    assert main(["check", "tinyllama"]) == 130
    assert one_error_line(capsys) == "interrupted"


def test_quiet_says_one_line_if_all_passed(
    fake_verify: Any, report: Callable[..., Report], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", "tinyllama", "-q"])
    assert len(capsys.readouterr().out.splitlines()) == 1
    fake_verify.result = report("fail")
    main(["check", "tinyllama", "-q"])
    assert len(capsys.readouterr().out.splitlines()) > 3


def test_verbose_adds_the_table_of_taps(
    fake_verify: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", "tinyllama", "-v"])
    assert "decode.7/blocks.1.attn.k" in capsys.readouterr().out


def test_convert_prints_the_files(
    fake_verify: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_verify.result = [tmp_path / "a.tflite"]
    assert main(["convert", "tinyllama", "--output", str(tmp_path), "--prefill", "8"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a.tflite'}\n"
    assert fake_verify.calls[0]["output"] == tmp_path
    assert fake_verify.calls[0]["prefill"] == (8,)


def test_convert_takes_a_format(
    fake_verify: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_verify.result = [tmp_path / "a.litertlm"]
    arguments = ["convert", "tinyllama", "--output", str(tmp_path), "--format"]
    assert main([*arguments, "litertlm"]) == 0
    assert fake_verify.calls[0]["format"] == "litertlm"
    assert main([*arguments, "zip"]) == 2
    assert capsys.readouterr().err == (
        "edgeverify: error: --format: there is no 'zip'; expected one of tflite, litertlm\n"
    )
    assert len(fake_verify.calls) == 1


def test_list_shows_every_port_with_its_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert list(dict.fromkeys(row[0] for row in rows[1:])) == NAMES.split(", ")
    assert [row[1] for row in rows if row[0] == "openelm"] == [
        *("tiny", "270m", "450m", "1.1b", "3b")
    ]
    assert ["gemma2", "2b", "google/gemma-2-2b"] in rows


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeverify.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_process_exits_with_the_status() -> None:
    wrong = run("check", "nope")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("edgeverify: error: there is no model 'nope'; expected one of ")
    assert wrong.stderr.count("\n") == 1
    version = run("--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.startswith("edgeverify 0.")
    described = run("check", "--help")
    assert described.returncode == 0
    assert "  3  nothing failed, but something could not be checked" in described.stdout


def test_a_reader_that_leaves_is_no_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "edgeverify.cli.main", "list"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
