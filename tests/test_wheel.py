"""The wheel, installed into an empty environment, beside projects that never heard of edgeverify.

What edgeverify depends on comes from the environment that runs the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Folder of the tree → the name it is imported by.
IMPORTED = {"edgeverify": "edgeverify", "models": "edgeverify_models"}
CONFTEST = """\
import pytest

def pytest_addoption(parser):
    parser.addoption("--model", default="none")

@pytest.fixture
def model(request):
    return request.config.getoption("--model")
"""
OWN_TEST = """\
from models import NAME

def test_own(model):
    assert NAME == "the project's own"
    assert model == {model!r}
"""
MY_PORT = """\
import dataclasses

from edgeverify_models.tiny_llama import TINYLLAMA
from models import NAME
from my_sibling import TITLE

assert NAME == "the project's own"
PORT = dataclasses.replace(TINYLLAMA, name=TITLE)
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


def tracked() -> list[str]:
    """The files of the tree that are kept, by their paths."""
    told = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return sorted(name for name in told.stdout.split("\0") if (ROOT / name).is_file())


def installed(name: str) -> str | None:
    """Where a file of the tree is in the wheel; None for what is no part of a package."""
    folder, _, rest = name.partition("/")
    return f"{IMPORTED[folder]}/{rest}" if folder in IMPORTED else None


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of wheel and source archive, made of kept files alone: no left-over ``build/``."""
    folder = tmp_path_factory.mktemp("built")
    for name in tracked():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "source"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def run(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``run(folder, "edgeverify", "list")``: a command of the new environment, in a folder."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home)
    python = home / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index"]
    subprocess.run([*install, "--no-deps", "--quiet", str(wheel)], check=True, timeout=120)
    (packages,) = home.glob("lib/python*/site-packages")
    # The folders alone: a .pth in them, such as an editable install's, is not read.
    folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(folders) + "\n")
    cache = os.environ.get("EDGEVERIFY_CACHE") or str(tmp_path_factory.mktemp("cache"))
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH",)},
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "EDGEVERIFY_CACHE": cache,
        "COLUMNS": "200",
    }

    def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        program = [str(python)] if command[0] == "python" else [str(python), "-m", "pytest"]
        if command[0] == "edgeverify":
            program = [str(home / "bin" / "edgeverify")]
        return subprocess.run(
            [*program, *command[1:]],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=500,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with ``models/``, ``tests/`` and a ``--model`` of its own, and two loose files."""
    folder = tmp_path_factory.mktemp("foreign")
    for name, text in {
        "pytest.ini": "[pytest]\npythonpath = .\naddopts = -p no:cacheprovider\n",
        "conftest.py": CONFTEST,
        "models/__init__.py": 'NAME = "the project\'s own"\n',
        "tests/test_own.py": OWN_TEST.format(model="none"),
        "tests/with_option.py": OWN_TEST.format(model="gpt2"),
        "my_port.py": MY_PORT,
        "my_sibling.py": 'TITLE = "mine"\n',
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def packages() -> list[str]:
    """The packages that pyproject.toml lists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return list(project["tool"]["setuptools"]["packages"])


def test_every_package_of_the_tree_is_listed() -> None:
    names = [installed(name) for name in tracked() if name.endswith("/__init__.py")]
    found = {str(Path(name).parent).replace("/", ".") for name in names if name}
    assert found == set(packages())
    assert packages() == sorted(packages())


def test_every_file_of_a_package_is_in_a_package() -> None:
    """A folder of code without ``__init__.py`` would be left out, whatever is in it.

    Folders of data only, as templates, are in the wheel by ``package-data``: see the next test.
    """
    folders = {
        str(Path(name).parent).replace("/", ".")
        for f in tracked()
        if f.endswith(".py") and (name := installed(f))
    }
    assert folders - set(packages()) == set()


@pytest.mark.slow
def test_the_wheel_holds_every_kept_file_and_no_other(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    ours = {name for name in names if ".dist-info/" not in name}
    assert ours == {place for name in tracked() if (place := installed(name))}
    (licence,) = (name for name in names if name.endswith("licenses/LICENSE"))
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.slow
def test_an_index_takes_wheel_and_source_archive(dist: Path) -> None:
    files = [str(path) for path in sorted(dist.iterdir())]
    assert len(files) == 2
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


@pytest.mark.slow
def test_what_runs_is_what_was_installed(run: Run, foreign: Path) -> None:
    """And not the tree, through the editable install of the environment that runs the tests."""
    names = ("edgeverify", "edgeverify_models", "models")
    script = f"import {', '.join(names)}; print(*({'.__file__, '.join(names)}.__file__), sep='\\n')"
    files = [Path(line) for line in run(foreign, "python", "-c", script).stdout.splitlines()]
    where = run(foreign, "python", "-c", "import sys; print(sys.prefix)").stdout.strip()
    assert [path.is_relative_to(where) for path in files] == [True, True, False]
    assert files[2].parent == foreign / "models"
    assert not any(path.is_relative_to(ROOT) for path in files)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("tests/test_own.py",), ("tests/with_option.py", "--model", "gpt2")]
)
def test_a_project_s_tests_run_as_if_edgeverify_were_not_there(
    run: Run, foreign: Path, arguments: tuple[str, ...]
) -> None:
    done = run(foreign, "pytest", "-q", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.slow
def test_the_commands_run_in_a_project_that_has_models_of_its_own(run: Run, foreign: Path) -> None:
    checked = run(foreign, "edgeverify", "check", "tinyllama", "-q")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.startswith("PASS  tinyllama tiny")
    modelled = run(foreign, "python", "-m", "edgeverify_models", "tinyllama")
    assert modelled.returncode == 0, modelled.stderr
    assert "tinyllama" in modelled.stdout.lower()
    helped = run(foreign, "edgeverify", "--help")
    assert (helped.returncode, helped.stdout.split()[:2]) == (0, ["usage:", "edgeverify"])


@pytest.mark.slow
def test_a_port_of_a_file_sees_the_project_s_models_and_ours(run: Run, foreign: Path) -> None:
    quick = ("--backend", "reauthored", "--prefill", "8", "--decode-steps", "1")
    done = run(foreign, "edgeverify", "check", "my_port.py:PORT", "-q", *quick)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("PASS  ")


@pytest.mark.slow
def test_pytest_tells_two_options_of_one_name_apart(run: Run, foreign: Path) -> None:
    both = run(foreign, "pytest", "-q", "-m", "parity", "--model", "tinyllama")
    assert both.returncode == pytest.ExitCode.USAGE_ERROR
    assert both.stderr.strip() == (
        "ERROR: --model: conftest.py declares this option, too, and the run asks for edgeverify; "
        "write --edgeverify-model for edgeverify's own"
    )
    ours = run(foreign, "pytest", "-q", "-m", "parity", "--edgeverify-model", "tinyllama")
    assert ours.returncode == 0, ours.stdout + ours.stderr
    assert "26 passed, 1 deselected" in ours.stdout


@pytest.mark.slow
def test_the_short_spelling_is_enough_where_nobody_else_has_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise AssertionError('not ours')\n")
    done = run(tmp_path, "pytest", "-q", "-m", "parity", "--model", "tinyllama")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "26 passed" in done.stdout
