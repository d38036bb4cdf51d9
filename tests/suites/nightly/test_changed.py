"""Which ports a change touches."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgeverify.core.errors import UsageError
from edgeverify.legs.ports import catalogue
from edgeverify.suites.nightly import changed

ALL = tuple(catalogue())


@pytest.mark.parametrize(
    ("files", "ports"),
    [
        (["models/phi.py"], ("phi2",)),
        (["models/smollm.py"], ("smollm", "smollm2")),
        (["models/openelm.py", "models/phi.py"], ("phi2", "openelm")),
        (["models/hf_config.py"], ALL),
        (["models/port.py"], ALL),
        (["models/__init__.py"], ALL),
        (["edgeverify/core/compare.py"], ALL),
        (["pyproject.toml"], ALL),
        (["constraints.txt"], ALL),
        ([".github/workflows/nightly.yml"], ALL),
        (["something/new.bin"], ALL),
        (["docs/nightly.md", "README.md", "tests/core/test_case.py", "benchmarks/x.py"], ()),
        (["tasks.py"], ()),
        (["golden/gemma2.tiny.safetensors"], ("gemma2",)),
        (["golden/smollm2-tiny.safetensors"], ("smollm2",)),
        (["golden/other.json"], ALL),
        (["golden/gemma22.tiny.safetensors"], ALL),
        (["golden/README.md"], ()),
        ([], ()),
    ],
)
def test_a_file_touches_the_ports_that_depend_on_it(
    files: list[str], ports: tuple[str, ...]
) -> None:
    assert changed.touched(files) == ports


def test_a_port_is_touched_by_the_files_that_it_imports() -> None:
    for name, entry in catalogue().items():
        assert entry.module in changed.reached(entry.module)
        assert "edgeverify_models.port" in changed.reached(entry.module), name
    # The tail of one file's import: gemma2 takes parts of gemma.
    users = [
        name
        for name, e in catalogue().items()
        if "edgeverify_models.gemma" in changed.reached(e.module)
    ]
    assert changed.touched(["models/gemma.py"]) == tuple(users)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "main")
    for name in ("a.py", "b.py", "c.py", "ä b.py"):
        (tmp_path / name).write_text(f"the contents of {name}, which are long enough to be known")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    git(tmp_path, "checkout", "-qb", "branch")
    return tmp_path


def test_since_where_the_branch_began(repository: Path) -> None:
    git(repository, "checkout", "-q", "main")
    (repository / "b.py").write_text("of main alone")
    git(repository, "commit", "-qam", "two")
    git(repository, "checkout", "-q", "branch")
    assert changed.since("main", repository) == []
    (repository / "a.py").write_text("committed")
    git(repository, "commit", "-qam", "three")
    git(repository, "mv", "c.py", "moved.py")
    (repository / "ä b.py").write_text("not committed")
    (repository / "new.py").write_text("not even added")
    found = changed.since("main", repository)
    assert found == ["a.py", "c.py", "moved.py", "new.py", "ä b.py"]


def test_an_unknown_commit_is_refused(repository: Path) -> None:
    with pytest.raises(UsageError) as caught:
        changed.since("nowhere", repository)
    assert str(caught.value).startswith("--changed-since nowhere: git merge-base: fatal: ")
    assert "expected a commit of this repository; fetch it with its history" in str(caught.value)


def test_the_command_tells_github(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    (repository / "models").mkdir()
    (repository / "models" / "phi.py").write_text("changed")
    output = repository.parent / "output"
    output.write_text("x=1\n")
    monkeypatch.setenv("GITHUB_OUTPUT", str(output))
    assert changed.main(["main"]) == 0
    assert capsys.readouterr().out == "phi2\n"
    assert output.read_text() == "x=1\nports=phi2\n"
    assert changed.main(["nowhere"]) == 2
    assert changed.main([]) == 2
