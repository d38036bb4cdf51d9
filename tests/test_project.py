"""The project's own files agree with each other."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

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
