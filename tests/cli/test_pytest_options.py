"""Whose an option is: in projects that declare ``--model`` themselves, and in those that do not."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgeverify.cli.options import OPTIONS
from edgeverify.report.files import FORMATS

CONFTEST = """\
import pytest

def pytest_addoption(parser):
    parser.addoption("--model", default="none")
    parser.addoption('--profile', action="store_true")

@pytest.fixture
def model(request):
    return request.config.getoption("--model")
"""
TEST = "def test_own(model, request): print('model', model, request.config.option.profile)"
CLASH = (
    "ERROR: --model: conftest.py declares this option, too, and the run asks for edgeverify; "
    "write --edgeverify-model for edgeverify's own"
)


@pytest.fixture
def foreign(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project with a ``--model`` and a ``--profile`` of its own."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TEST)
    return pytester


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    off = ("cacheprovider", "hypothesispytest", "anyio", "jaxtyping", "xdist")
    flags = [part for name in off for part in ("-p", f"no:{name}")]
    return pytester.runpytest_inprocess("-rP", *flags, *arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "model none False"),
        (("--model", "gpt2"), "model gpt2 False"),
        (("--model=gpt2", "--profile"), "model gpt2 True"),
        (("-m", "not golden", "--model", "gpt2"), "model gpt2 False"),
        (("-mnot parity", "--model=gpt2"), "model gpt2 False"),
    ],
)
def test_a_project_s_own_options_stay_its_own(
    foreign: pytest.Pytester, arguments: tuple[str, ...], told: str
) -> None:
    result = run(foreign, *arguments)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([told])


def test_its_addopts_do_too(foreign: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign.makeini("[pytest]\naddopts = --model gpt2")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--profile")
    result = run(foreign)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["model gpt2 True"])


@pytest.mark.parametrize("mark", [("-m", "parity"), ("-mparity",), ("-m=parity and not slow",)])
def test_a_run_that_asks_for_both_is_told_whose_the_option_is(
    foreign: pytest.Pytester, mark: tuple[str, ...]
) -> None:
    result = run(foreign, *mark, "--model", "tinyllama")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert [line for line in result.stderr.lines if line] == [CLASH]


def test_an_owner_in_a_folder_of_tests_is_found(pytester: pytest.Pytester) -> None:
    folder = pytester.mkdir("tests")
    (folder / "conftest.py").write_text(CONFTEST)
    result = run(pytester, "-m", "parity", "--profile")
    line = next(line for line in result.stderr.lines if line)
    assert line.startswith("ERROR: --profile: tests/conftest.py declares this option, too")
    assert "--edgeverify-profile" in line


def test_another_plugin_may_have_it(pytester: pytest.Pytester) -> None:
    """One whose text does not show the option: what cannot be found is not guessed."""
    pytester.makepyfile(
        own="def pytest_addoption(parser):\n    parser.addoption('--' + 'model')", test_x=TEST
    )
    pytester.syspathinsert()
    result = run(pytester, "-p", "own", "-m", "parity", "--model", "tinyllama")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --model: another plugin or conftest declares this*"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "parity", "--edgeverify-model", "tinyllama"),
        ("--edgeverify-model=tinyllama",),
        # The short one is the project's, beyond doubt, where the other is there, too.
        ("-m", "parity", "--edgeverify-model", "tinyllama", "--model", "gpt2"),
        ("-m", "parity", "--edgeverify-model", "tinyllama", "--seed", "7"),
    ],
)
def test_the_unmistakable_spelling_works_beside_the_project_s_own(
    foreign: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    result = run(foreign, *arguments, "--collect-only", "-q")
    result.stdout.fnmatch_lines(["parity::tinyllama[[]authoring-prefill.0[]]"])
    assert result.ret == 0


@pytest.mark.parametrize(
    "arguments", [("--seed", "5"), ("--edgeverify-cache=x",), ("--size=tiny",)]
)
def test_a_run_that_would_check_nothing_is_refused(
    pytester: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    """It would be green, and whoever typed the option would think that a model was checked."""
    pytester.makepyfile("def test_own(): pass")
    result = run(pytester, *arguments)
    flag = arguments[0].partition("=")[0]
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {flag}: nothing would be checked; expected -m parity*"])


def test_options_in_addopts_wait_for_a_run_that_asks(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\naddopts = "--edgeverify-size tiny --seed 5"\n'
    )
    pytester.makepyfile("def test_own(): pass")
    run(pytester).assert_outcomes(passed=1)


def test_addopts_may_ask(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\naddopts = "-m parity"\n')
    monkeypatch.setenv("PYTEST_ADDOPTS", "--model tinyllama")
    result = run(pytester, "--collect-only", "-q")
    result.stdout.fnmatch_lines(["parity::tinyllama[[]authoring-prefill.0[]]"])


def test_a_conftest_that_is_found_late_may_declare_it(pytester: pytest.Pytester) -> None:
    """pytest reads it while it collects; a ``--model`` in its parser would be a conflict."""
    folder = pytester.mkpydir("deep").joinpath("deeper")
    folder.mkdir()
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_x.py").write_text("def test_x(): pass")
    result = run(pytester, "-m", "parity", "--model", "tinyllama", "--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["parity::tinyllama[[]authoring-prefill.0[]]"])


def test_a_folder_that_an_option_names_is_not_that_of_the_tests(
    foreign: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """pytest would look for conftests there, and miss the options of the project's."""
    cache = str(tmp_path_factory.mktemp("cache"))
    arguments = ("-m", "parity", "--edgeverify-model", "tinyllama", "--cache", cache)
    result = run(foreign, *arguments, "--model", "gpt2", "--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["parity::tinyllama[[]authoring-prefill.0[]]"])


def test_what_nobody_declares_is_still_refused(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--modell", "tinyllama")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unrecognized arguments: --modell*"])


def test_help_shows_both_spellings_and_leaves_out_what_is_not_ours(
    foreign: pytest.Pytester,
) -> None:
    text = run(foreign, "--help").stdout.str()
    listed = set(re.findall(r"(?<=[\s,])--[a-z-]+", text.split("edgeverify: model parity:")[1]))
    reports = {f"--parity-{name}" for name in FORMATS} | {"--html-report"}
    ours = {*OPTIONS, "--model", "--golden-dir", "--update-golden", *reports}
    assert {f"--edgeverify-{flag[2:]}" for flag in ours} <= listed
    assert "--seed" in listed
    section = text.split("edgeverify: model parity:")[1].split("\n\n")[0]
    assert not re.search(r"(?<!edgeverify)--model\b|, --profile", section)


def test_a_plain_run_imports_next_to_nothing_of_edgeverify(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_p(): pass")
    script = (
        "import pytest, sys; pytest.main(['-q', '-p', 'no:cacheprovider', '--strict-markers'])\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] == 'edgeverify'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1].split() == [
        "edgeverify",
        "edgeverify.cli",
        "edgeverify.cli.pytest_marks",
        "edgeverify.cli.pytest_plugin",
    ]


def test_marks_are_known_where_nothing_is_asked_for(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.golden\n@pytest.mark.parity\ndef test_p(): 1")
    run(pytester, "--strict-markers", "-W", "error").assert_outcomes(passed=1)
    shown = run(pytester, "--markers").stdout.str()
    for mark in ("parity", "invariants", "golden"):
        assert f"@pytest.mark.{mark}: " in shown


def test_pytest_s_internals_are_left_alone() -> None:
    """But for two: the compiler of mark expressions, which has no public name, and
    ``known_args_namespace``, which other plugins (pytest-cov) read in the same hook."""
    folder = Path(__file__).parents[2] / "edgeverify" / "cli"
    text = "".join(path.read_text() for path in folder.glob("pytest_*.py"))
    assert not re.search(r"\b(?:config|parser|group|pluginmanager)\._", text)
    assert re.findall(r"from (_pytest[\w.]*) import (\w+)", text) == [
        ("_pytest.mark.expression", "Expression")
    ]
    assert "known_args_namespace" in inspect.getsource(pytest.Config)
