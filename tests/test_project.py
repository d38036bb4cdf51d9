"""The project's own files agree with each other."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tasks

ROOT = Path(__file__).parents[1]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in pinned}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [
        Requirement(text) for text in [*project["dependencies"], *(t for e in extras for t in e)]
    ]


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    pinned = constraints()
    for requirement in requirements():
        version = pinned[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version), requirement


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_requirement_has_a_floor_and_all_but_tools_a_ceiling(
    requirement: Requirement,
) -> None:
    """``pip install .`` without constraints.txt resolves to a working set, next year, too."""
    operators = {specifier.operator for specifier in requirement.specifier}
    # Of versions by the calendar, as flatbuffers' and setuptools', none says what it breaks.
    free = {"flatbuffers", "setuptools"}
    assert operators == ({">="} if requirement.name in free else {">=", "<"})


def test_every_library_that_is_imported_is_required() -> None:
    """And does not only come with another one."""
    required = {requirement.name.lower().replace("_", "-") for requirement in requirements()}
    of_module = packages_distributions()
    imported: dict[str, str] = {}
    for path in [*ROOT.glob("edgeverify/**/*.py"), *ROOT.glob("models/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            imported |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    ours = {*sys.stdlib_module_names, "edgeverify", "edgeverify_models", "_pytest"}
    missing = {
        f"{path} imports {module}"
        for module, path in imported.items()
        if module not in ours
        and not required & {d.lower().replace("_", "-") for d in of_module.get(module, [])}
    }
    assert missing == set()


def test_no_file_is_longer_than_one_reads() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in ROOT.glob("edgeverify/**/*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


def test_constraints_fit_any_index() -> None:
    for version in constraints().values():
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), version


def test_no_machine_path_or_registry_is_in_the_set_up() -> None:
    for name in ("constraints.txt", "pyproject.toml", ".ci/run", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        assert not re.search(r"find-links|index-url|file://|/work/|/opt/|/home/", text), name


def test_ci_runs_the_documented_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "set -euo pipefail" in script
    command = "-c constraints.txt -e '.[test,oracle,gguf,litert-lm]'"
    assert command in script
    assert command in (ROOT / "CONTRIBUTING.md").read_text()
    for task in ("all", "lint"):
        assert f".venv/bin/python -m tasks {task}" in script


def tasks_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasks", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_each_task_runs_a_command_that_exists() -> None:
    listed = tasks_command("--list")
    assert listed.returncode == 0, listed.stderr
    commands = re.findall(r"\$ python (.*)", listed.stdout)
    assert len(commands) == sum(len(task.commands) for task in tasks.TASKS.values())
    verbs = subprocess.run(
        [sys.executable, "-m", "edgeverify.cli.main", "--help"], capture_output=True, text=True
    ).stdout
    for command in commands:
        option, module, *rest = shlex.split(command)
        assert option == "-m"
        assert importlib.util.find_spec(module) is not None, command
        if module == "edgeverify.cli.main":
            assert re.search(rf"^    {rest[0]} ", verbs, re.MULTILINE), command


def test_the_quick_task_leaves_out_every_marker_but_the_parity_run_s() -> None:
    left_out = set(re.findall(r"not (\w+)", tasks.QUICK))
    conftest = (ROOT / "conftest.py").read_text()
    markers = re.search(r"^MARKERS = \{(.*?)^\}", conftest, re.MULTILINE | re.DOTALL)
    assert markers is not None
    assert left_out == set(re.findall(r'^    "(\w+)":', markers[1], re.MULTILINE))
    assert tasks.QUICK in (ROOT / "CONTRIBUTING.md").read_text()


def test_a_task_runs_all_its_commands_and_gives_the_first_failure() -> None:
    code = "import sys; print('{0}', flush=True); sys.exit({0})"
    commands = tuple(("-c", code.format(status)) for status in (0, 3, 4))
    # In a process of its own: what the commands print goes to its standard output.
    script = f"import tasks, sys; sys.exit(tasks.run(tasks.Task('', {commands!r}), ['more']))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["0", "3", "4"]
    shown = [line for line in done.stdout.splitlines() if line.startswith("$")]
    assert [line.endswith(" more") for line in shown] == [False, False, True]


def test_an_unknown_task_is_refused() -> None:
    done = tasks_command("nope")
    assert done.returncode == 2
    assert "'nope'" in done.stderr
    assert "quick" in done.stderr
