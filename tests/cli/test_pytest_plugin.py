"""The plugin in projects of its own: pytester's folders, with a made-up ``verify``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeverify.core.errors import CheckpointError
from edgeverify.core.results import FAIL, PASS, GoldenChange, GoldenResult, Report

STEPS = ("prefill.0", "prefill.1", "prefill.2", *(f"decode.{n}" for n in range(8)))


class Project:
    """A pytester folder; runs in this process see the made-up ``verify``."""

    def __init__(self, pytester: pytest.Pytester, fake_verify: Any) -> None:
        self.pytester = pytester
        self.verify = fake_verify

    def run(self, *arguments: str) -> pytest.RunResult:
        # Without plugins that other tests need, and that would only cost time here.
        off = ("cacheprovider", "hypothesispytest", "anyio", "jaxtyping", "xdist")
        flags = [part for name in off for part in ("-p", f"no:{name}")]
        return self.pytester.runpytest_inprocess(*flags, *arguments)

    @property
    def models(self) -> list[str]:
        """The models that were verified, in order."""
        return [call["port"].removeprefix("port ") for call in self.verify.calls]


@pytest.fixture
def project(pytester: pytest.Pytester, fake_verify: Any, audits: Callable[..., Any]) -> Project:
    fake_verify.audits = audits()
    return Project(pytester, fake_verify)


def test_one_test_for_each_audit_leg_and_step_without_a_test_file(project: Project) -> None:
    result = project.run("-m", "parity", "--model", "tinyllama", "-v")
    result.assert_outcomes(passed=26)
    names = ("config", "weights", "signatures", "edges")
    result.stdout.fnmatch_lines([f"parity::tinyllama[[]audit-{name}[]] PASSED*" for name in names])
    result.stdout.fnmatch_lines(
        [
            f"parity::tinyllama[[]{leg}-{step}[]] PASSED*"
            for leg in ("authoring", "conversion")
            for step in STEPS
        ]
    )
    assert result.ret == 0
    assert project.models == ["tinyllama"]


def test_all_models_are_the_default(project: Project) -> None:
    result = project.run("-m", "parity", "--prefill", "8", "--decode-steps", "1")
    names = ["gemma1", "gemma2", "tinyllama", "phi2", "openelm", "smollm", "smollm2"]
    assert project.models == names
    # The made-up report has both of the steps, which are prefill.0 and .1 and decode.0.
    result.assert_outcomes(passed=7 * (4 + 2 * 3))
    again = project.run("-m", "parity", "--model", "all", "--model", "phi2", "--collect-only", "-q")
    again.stdout.fnmatch_lines(["182 tests collected*"])


@pytest.mark.parametrize("arguments", [(), ("-m", "not parity"), ("-m", "not slow"), ("-k", "p")])
def test_a_plain_run_never_starts_parity(project: Project, arguments: tuple[str, ...]) -> None:
    project.pytester.makepyfile("def test_p(): pass")
    project.run(*arguments).assert_outcomes(passed=1)
    assert project.models == []


def test_the_mark_chooses_among_the_project_s_own_tests(project: Project) -> None:
    project.pytester.makepyfile("def test_own(): pass")
    result = project.run("-m", "parity", "--model", "tinyllama")
    result.assert_outcomes(passed=26, deselected=1)
    result = project.run("-m", "parity", "--model", "tinyllama", "-k", "authoring and decode")
    result.assert_outcomes(passed=8, deselected=19)


def test_a_project_s_own_parity_tests_run_too(project: Project) -> None:
    project.pytester.makepyfile(
        "import pytest\n@pytest.mark.parity\ndef test_own(): pass\ndef test_other(): pass"
    )
    result = project.run("-m", "parity", "--model", "tinyllama", "--strict-markers")
    result.assert_outcomes(passed=27, deselected=1)


def golden_report(report: Callable[..., Report], outcome: str) -> Report:
    moved = () if outcome == PASS else ("kernels",)
    change = GoldenChange("decode.0/logits", "moved", 71.0)
    kept = (
        GoldenResult("m.reference.safetensors", PASS, (), ("bitwise",)),
        GoldenResult("m.tflite.safetensors", outcome, moved, ("moved: kernels", "do"), (change,)),
    )
    return replace(report(), legs={}, goldens=kept)


def test_goldens_are_one_test_each_and_carry_what_moved(
    project: Project, report: Callable[..., Report]
) -> None:
    (project.pytester.path / "golden").mkdir()
    project.verify.audits = {}
    project.verify.result = golden_report(report, FAIL)
    arguments = ("-m", "golden", "--model", "tinyllama", "-v", "--junitxml", "j.xml")
    result = project.run(*arguments)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["golden::tinyllama[[]golden-reference[]] PASSED*"])
    result.stdout.fnmatch_lines(["m.tflite.safetensors: moved: kernels", "do"])
    call = project.verify.calls[0]
    assert (call["directory"], call["update"]) == (project.pytester.path / "golden", False)
    # Each is asked for alone, so that two workers do not write each other's.
    assert [call["kinds"] for call in project.verify.calls] == [("reference",), ("tflite",)]
    written = (project.pytester.path / "j.xml").read_text()
    assert '<property name="largest_change" value="71.0"' in written
    assert '<property name="moved" value="kernels"' in written


def test_goldens_are_updated_where_that_is_asked_for(
    project: Project, report: Callable[..., Report]
) -> None:
    (project.pytester.path / "kept").mkdir()
    project.verify.audits = {}
    project.verify.result = golden_report(report, PASS)
    result = project.run("-m", "golden", "--golden-dir", "kept", "--update-golden")
    result.assert_outcomes(passed=14)
    assert {call["update"] for call in project.verify.calls} == {True}
    assert {call["directory"] for call in project.verify.calls} == {project.pytester.path / "kept"}


def test_a_project_without_goldens_is_told(project: Project) -> None:
    result = project.run("-m", "golden", "--model", "tinyllama")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--golden-dir */golden: there is no such folder; expected*"])


def test_a_mark_goes_with_others(project: Project) -> None:
    result = project.run("-m", "parity and not slow", "--model", "tinyllama")
    result.assert_outcomes(passed=26)


def test_a_failure_is_in_the_report_s_words_without_a_traceback(
    project: Project, report: Callable[..., Report]
) -> None:
    project.verify.result = report("fail")
    result = project.run("-m", "parity", "--model", "tinyllama")
    result.assert_outcomes(passed=25, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*tinyllama[[]authoring-prefill.0[]]*",
            "authoring prefill.0: fail: first diverging tap prefill.0/blocks.1.attn.k: error ratio "
            "71.0",
            "faulty on its own: blocks.1.attn.k",
            "error ratio 71, allowed 1.5. Look at the key projection.",
            "FAIL  tinyllama tiny*",
            "FAILED parity::tinyllama[[]authoring-prefill.0[]]*",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")
    assert result.ret == 1


def test_an_audit_that_fails_or_is_missing_fails_alone(
    project: Project, audits: Callable[..., Any]
) -> None:
    project.verify.audits = audits(config="fail")
    del project.verify.audits["signatures"]
    result = project.run("-m", "parity", "--model", "tinyllama")
    result.assert_outcomes(passed=24, failed=2)
    result.stdout.fnmatch_lines(
        [
            "config: fail: rotary base is 10000, should be 5300",
            "cause  rotary base is 10000, should be 5300",
            "signatures: unchecked: the report has no such audit",
            "FAIL  tinyllama tiny*",
            "cause  rotary base is 10000*",
            "✗ config *",
        ]
    )


def test_unchecked_fails_and_says_so(project: Project, report: Callable[..., Report]) -> None:
    project.verify.result = report("pass", "unchecked", reason="no such tensor")
    result = project.run("-m", "parity", "--model", "tinyllama")
    result.assert_outcomes(passed=25, failed=1)
    result.stdout.fnmatch_lines(["conversion prefill.0: unchecked: no such tensor"])


def test_a_leg_or_step_that_the_report_lacks_is_no_pass(
    project: Project, report: Callable[..., Report]
) -> None:
    made = report()
    project.verify.result = replace(made, legs={"authoring": made.legs["authoring"]})
    result = project.run("-m", "parity", "--model", "tinyllama", "--decode-steps", "9")
    result.assert_outcomes(passed=15, failed=13)
    result.stdout.fnmatch_lines(
        [
            "authoring decode.8: unchecked: *",
            "conversion: unchecked: the report has no such leg",
        ]
    )


def test_bad_input_found_by_the_run_is_one_line_per_test(project: Project) -> None:
    project.verify.result = CheckpointError("is empty", where="w", fix="copy it")
    result = project.run("-m", "parity", "--model", "tinyllama")
    result.assert_outcomes(errors=26)
    result.stdout.fnmatch_lines(["cannot check tinyllama: w: is empty; copy it"])
    assert len(project.models) == 1
    result.stdout.no_fnmatch_line("*Traceback*")


def test_an_unexpected_error_shows_its_traceback_once(project: Project) -> None:
    project.verify.result = ZeroDivisionError("division by zero")
    result = project.run("-m", "parity", "--model", "tinyllama")
    result.assert_outcomes(errors=26)
    assert len(project.models) == 1
    assert len(re.findall(r"^E +ZeroDivisionError", result.stdout.str(), re.MULTILINE)) == 1
    result.stdout.fnmatch_lines(
        [
            "cannot check tinyllama: the first of its tests raised ZeroDivisionError: division by"
            " zero"
        ]
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--model tinylama", "ERROR: there is no model 'tinylama'; expected one of gemma1, *"),
        ("--model tinyllama --size 9b", "ERROR: --size of tinyllama: there is no '9b'; *"),
        ("--model no.py:PORT", "ERROR: no.py: there is no such file; *"),
        ("-m parity --prefill x", "ERROR: --prefill: got 'x'; expected a whole number *"),
        (
            "-m parity --parity-json no/r",
            "ERROR: --parity-json *no/r: the folder * does not exist;*",
        ),
    ],
)
def test_bad_usage_is_one_line_and_exit_4(project: Project, arguments: str, line: str) -> None:
    result = project.run(*arguments.split())
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (told,) = [text for text in result.stderr.lines if text]
    result.stderr.fnmatch_lines([line])
    assert "\n" not in told


def test_reports_are_written_one_for_each_model(project: Project) -> None:
    options = [f"--parity-{name}=r.{name}" for name in ("json", "html", "junit")]
    project.run("-m", "parity", "--model", "phi2", *options).assert_outcomes(passed=26)
    folder = project.pytester.path
    assert json.loads((folder / "r.json").read_text())["outcome"] == "pass"
    assert {path.name for path in folder.glob("r.*")} == {"r.json", "r.html", "r.junit"}
    two = ("--model", "phi2", "--model", "smollm", "--parity-json", "two.json")
    project.run("-m", "parity", *two).assert_outcomes(passed=52)
    assert {path.name for path in folder.glob("two*")} == {"two-phi2.json", "two-smollm.json"}


def test_a_port_of_a_file_has_a_readable_id(project: Project) -> None:
    for folder in ("a", "b"):
        (project.pytester.mkdir(folder) / "port.py").touch()
    result = project.run("--model", "a/port.py:PORT", "--collect-only", "-q")
    result.stdout.fnmatch_lines(["parity::port.PORT[[]authoring-prefill.0[]]"])
    result = project.run("--model=a/port.py:PORT", "--model=b/port.py:PORT", "--co", "-q")
    result.stdout.fnmatch_lines(["parity::b_port.py_PORT[[]conversion-decode.7[]]"])


def test_a_prompt_gives_one_test_for_each_leg(project: Project) -> None:
    result = project.run("-m", "parity", "--model", "tinyllama", "--prompt", "The capital", "-v")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["parity::tinyllama[[]authoring[]] PASSED*"])


def test_selectors_are_passed_on(project: Project) -> None:
    project.run("--model", "phi2", "--seed", "5", "--prefill", "9", "--backend", "reauthored")
    (call,) = project.verify.calls
    assert (call["seed"], call["prefill"], call["backends"]) == (5, (9,), ("reauthored",))


WORKERS = """\
import dataclasses, importlib.util, sys, types

spec = importlib.util.spec_from_file_location("shared", {shared!r})
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)

def verify(port, **selectors):
    with open("calls.txt", "a") as file:
        print(port, file=file)
    return dataclasses.replace(shared.make_report(), audits=shared.make_audits())

sys.modules["edgeverify.suites.check"] = types.ModuleType("edgeverify.suites.check")
sys.modules["edgeverify.suites.check"].verify = verify
"""


def test_xdist_keeps_a_model_on_one_worker_with_loadgroup(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    shared = Path(__file__).parents[2] / "conftest.py"
    pytester.makeconftest(WORKERS.format(shared=str(shared)))
    models = ("--model", "phi2", "--model", "smollm")
    result = pytester.runpytest_subprocess(
        "-m", "parity", *models, "-n", "2", "--dist", "loadgroup"
    )
    result.assert_outcomes(passed=52)
    assert sorted((pytester.path / "calls.txt").read_text().split()) == ["phi2", "smollm"]


def test_the_steps_are_those_of_a_default_case(report: Callable[..., Report]) -> None:
    from edgeverify.legs.selectors import Selectors

    assert Selectors().step_names == STEPS
    assert Selectors(prompt="x").step_names is None
