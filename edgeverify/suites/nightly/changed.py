"""Lists the ports that a change touches: ``python -m edgeverify.suites.nightly.changed REF``.

A file in ``models/`` touches the ports that it defines and the ports whose files import it.
Documents and tests touch none. Any other change may touch all ports.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from edgeverify.core.errors import EdgeVerifyError, UsageError
from edgeverify.legs.ports import catalogue

# No check reads these. A changed test is run by pytest.
NONE_FOLDERS = ("docs", "tests", "benchmarks")
NONE_NAMES = ("LICENSE", ".gitignore", "tasks.py")
GOLDEN, PORTS = "golden", "models"
PORTS_PACKAGE = "edgeverify_models"  # the import name of the folder


def since(ref: str, root: Path | None = None) -> list[str]:
    """Lists files, relative to the repository, that changed since this branch left ``ref``.

    Uncommitted changes count, too, and so do both names of a moved file.

    Raises:
        UsageError: this is not a git repository, or it has no such commit.
    """
    where = f"--changed-since {ref}"
    top = Path(_git(["rev-parse", "--show-toplevel"], root, where).strip())
    base = _git(["merge-base", ref, "HEAD"], top, where).strip()
    differing = _git(["diff", "--name-only", "--no-renames", "-z", base], top, where)
    new = _git(["ls-files", "--others", "--exclude-standard", "-z"], top, where)
    return sorted({name for name in (differing + new).split("\0") if name})


def touched(files: Iterable[str]) -> tuple[str, ...]:
    """Returns the registered ports that a change of these files touches, in catalogue order."""
    found: set[str] = set()
    for name in files:
        found |= set(_touched_by(PurePosixPath(name)))
    return tuple(port for port in catalogue() if port in found)


def _touched_by(path: PurePosixPath) -> Iterable[str]:
    if path.suffix == ".md" or path.name in NONE_NAMES or path.parts[0] in NONE_FOLDERS:
        return ()
    if path.parts[0] == GOLDEN and len(path.parts) > 1:
        # The longest name first: today gemma1 is not a part of another port's name, but it may be.
        names = sorted(catalogue(), key=len, reverse=True)
        owner = next((port for port in names if _named(path.parts[1], port)), None)
        return tuple(catalogue()) if owner is None else (owner,)
    if path.parts[0] == PORTS and path.suffix == ".py":
        inner = (PORTS_PACKAGE, *path.with_suffix("").parts[1:])
        module = ".".join(inner).removesuffix(".__init__")
        return [
            name
            for name, entry in catalogue().items()
            if module == PORTS_PACKAGE or module in reached(entry.module)
        ]
    return tuple(catalogue())


def _named(text: str, port: str) -> bool:
    rest = text.removeprefix(port)
    return text.startswith(port) and not rest[:1].isalnum()


def reached(module: str, seen: set[str] | None = None) -> set[str]:
    """Returns a module of ``models`` and all its modules that it imports; reads, runs nothing."""
    import edgeverify_models as models

    seen = set() if seen is None else seen
    file = Path(str(models.__file__)).parent / Path(*module.split(".")[1:])
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    if module in seen or not file.is_file():
        return seen
    seen.add(module)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith(f"{PORTS_PACKAGE}."):
                reached(name, seen)
    return seen


def _git(arguments: Sequence[str], root: Path | None, where: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        )
    except FileNotFoundError as error:
        raise UsageError("git is not installed", where=where, expected="git") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["no reason given"])[0]
        raise UsageError(
            f"git {arguments[0]}: {said}",
            where=where,
            expected="a commit of this repository",
            fix="fetch it with its history (fetch-depth: 0)",
        ) from error
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the touched ports, space-separated, and sets ``ports`` for GitHub's next steps."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 1:
        print("usage: python -m edgeverify.suites.nightly.changed REF", file=sys.stderr)
        return 2
    try:
        line = " ".join(touched(since(arguments[0])))
    except EdgeVerifyError as error:
        print(f"edgeverify: error: {error}", file=sys.stderr)
        return 2
    print(line)
    if output := os.environ.get("GITHUB_OUTPUT"):
        with open(output, "a", encoding="utf-8") as file:
            file.write(f"ports={line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
