"""Modules and files that the code names in a string exist: an import checker sees none of them."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(
    path
    for folder in ("edgeverify", "models", "benchmarks")
    for path in ROOT.glob(f"{folder}/**/*.py")
)
MODULE = re.compile(r"(?:edgeverify|edgeverify_models|models|benchmarks)(?:\.[a-z_0-9]+)+(?::\w+)?")
# Names of things that are no module: a testsuite, a metadata key.
NOT_MODULES = {"edgeverify.instrumentation", "edgeverify.suites.nightly"}


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and value of each string of a file that is not a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and id(node) not in docstrings:
            yield node.lineno, node.value


def exists(name: str) -> bool:
    """Whether a module, ``module:attribute`` or ``module.attribute`` is there."""
    module, _, attribute = name.partition(":")
    spec = find(module)
    if spec is None and not attribute:
        module, _, attribute = module.rpartition(".")
        spec = find(module)
    if spec is None or spec.origin is None:
        return False
    if not attribute:
        return True
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return attribute in {n.name for n in tree.body if hasattr(n, "name")} | {
        target.id
        for node in tree.body
        for target in (getattr(node, "targets", None) or [getattr(node, "target", None)])
        if isinstance(target, ast.Name)
    }


def find(module: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None


def named() -> list[str]:
    """``file:line name`` of each module that the code names in a string."""
    quoted = re.compile(rf"""["'](?:{MODULE.pattern})["']""")
    found = [
        f"{path.relative_to(ROOT)}:{line} {value}"
        for path in CODE
        if quoted.search(path.read_text("utf-8"))  # parsing all files takes 2 s
        for line, value in strings(path)
        if MODULE.fullmatch(value) and value not in NOT_MODULES
    ]
    assert len(found) > 10, "the search itself is broken"
    return found


@pytest.mark.parametrize("place", named())
def test_a_module_named_in_the_code_exists(place: str) -> None:
    assert exists(place.split()[1])


def test_the_search_sees_what_is_missing() -> None:
    assert exists("edgeverify.core.errors:UsageError")
    assert not exists("edgeverify.core.errors:Nope")
    assert not exists("edgeverify.nope")
    assert not exists("edgeverify.nope.deeper:run")


COMMAND = re.compile(r"python3? -m ((?:edgeverify|edgeverify_models|models|benchmarks)[\w.]*)")
TEXTS = sorted(
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "golden/*.md",
        ".github/workflows/*.yml",
        ".ci/*",
        "*.py",
        "edgeverify/**/*.py",
        "models/*.py",
        "benchmarks/*.py",
    )
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize(
    "module", sorted({name for path in TEXTS for name in COMMAND.findall(path.read_text("utf-8"))})
)
def test_a_module_that_a_text_tells_to_run_can_be_run(module: str) -> None:
    spec = find(module)
    assert spec is not None
    if spec.submodule_search_locations:  # a package is run by its __main__
        spec = find(f"{module}.__main__")
        assert spec is not None
    assert "__main__" in str(spec.origin) or '"__main__"' in Path(str(spec.origin)).read_text()


def test_entry_points_and_package_data_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    entries = {**project["project"]["scripts"], **project["project"]["entry-points"]["pytest11"]}
    for name in entries.values():
        assert exists(name), name
    for package, patterns in project["tool"]["setuptools"]["package-data"].items():
        folder = Path(str(find(package).origin)).parent  # type: ignore[union-attr]
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: {pattern}"


def test_every_code_file_that_a_document_names_exists() -> None:
    """``edgeverify/core/compare.py`` in a text leads somewhere; links do, too."""
    missing = []
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]):
        if path.name == "CHANGELOG.md":  # what was true then
            continue
        text = path.read_text("utf-8")
        for name in re.findall(r"\b(?:edgeverify|models|tests|benchmarks)/[\w/]+\.\w+", text):
            if not (ROOT / name).exists():
                missing.append(f"{path.name}: {name}")
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
            if not (path.parent / link).exists():
                missing.append(f"{path.name}: {link}")
    assert missing == []
