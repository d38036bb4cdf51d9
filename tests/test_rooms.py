"""The import rules of the design, kept by reading every file, and the lean start, by starting."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "tensorflow", "transformers", "litert_torch", "jax")
STANDARD = frozenset(sys.stdlib_module_names)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute module of every import, also inside functions.

    ``from a import b`` yields ``a.b``, which is a prefix match for rules on ``a`` and, where ``b``
    is a module, on ``a.b``. What only type checkers read is no import.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def is_within(module: str, packages: tuple[str, ...] | frozenset[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def files(*patterns: str) -> list[Path]:
    """Files of the project; a module that has become a package counts in full."""
    found = []
    for pattern in patterns:
        found += [*ROOT.glob(pattern), *ROOT.glob(pattern.removesuffix(".py") + "/**/*.py")]
    return sorted(set(found))


def offences(paths: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in paths
        for line, module in imports(path)
        if is_within(module, forbidden)
    ]


# Room → the rooms that it may import; each stands below those in this list.
ROOMS = {
    "core": (),
    "report": ("core",),
    "hf": ("core",),
    "litert": ("core",),
    "backends": ("core", "hf", "litert"),
    "audits": ("core", "hf", "litert"),
    "diagnose": ("core", "hf", "litert", "backends"),
    "legs": ("core", "report", "hf", "litert", "backends", "audits", "diagnose"),
    "suites": ("core", "report", "hf", "litert", "backends", "audits", "diagnose", "legs"),
    "cli": ("core", "report", "hf", "litert", "backends", "audits", "diagnose", "legs", "suites"),
}


def breaches(root: Path) -> list[str]:
    """Imports from a room that may not be imported, or from no room at all."""
    found = []
    for room, above in ROOMS.items():
        for path in sorted(root.glob(f"edgeverify/{room}/**/*.py")):
            for line, module in imports(path):
                parts = module.split(".")
                if parts[0] == "edgeverify" and parts[1] not in (room, *above):
                    found.append(f"{path.relative_to(root)}:{line} imports {module}")
    return found


def test_a_room_imports_only_rooms_above_it() -> None:
    assert breaches(ROOT) == []


def test_the_root_has_rooms_and_no_loose_files() -> None:
    package = ROOT / "edgeverify"
    assert {path.name for path in package.glob("*") if path.is_file()} == {
        "__init__.py",
        "py.typed",
    }
    folders = {path.name for path in package.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == set(ROOMS)


def test_a_list_of_rooms_has_no_circle() -> None:
    names = list(ROOMS)
    for room, above in ROOMS.items():
        assert all(names.index(other) < names.index(room) for other in above), room


EVERYTHING = ("edgeverify/**/*.py", "models/**/*.py")
# Walls inside rooms, and what heavy libraries a room may not know.
NEVER = {
    "ports import neither edgeverify nor transformers": (
        ["models/**/*.py"],
        ("edgeverify", "transformers", "litert_torch.generative.examples"),
    ),
    "core needs numpy only": (["edgeverify/core/**/*.py"], (*HEAVY, "edgeverify_models")),
    "report needs no heavy library and computes no verdict": (
        ["edgeverify/report/**/*.py"],
        (*HEAVY, "numpy", "edgeverify_models", "edgeverify.core.compare", "edgeverify.core.noise"),
    ),
    "backends/tflite runs on a device host without torch": (
        [
            "edgeverify/backends/tflite.py",
            "edgeverify/backends/runtimes.py",
            "edgeverify/backends/litert_lm.py",
            "edgeverify/backends/sessions/session.py",
            "edgeverify/backends/sessions/tflite.py",
        ],
        ("torch", "litert_torch", "transformers", "edgeverify_models"),
    ),
    "a contained child starts without torch": (
        [
            "edgeverify/litert/contained/*.py",
            "edgeverify/litert/flatbuffer/*.py",
            "edgeverify/litert/inspect.py",
            "edgeverify/litert/interface.py",
            "edgeverify/litert/bundle/reader.py",
            "edgeverify/legs/foreign/case.py",
            "edgeverify/legs/foreign/tasks.py",
            "benchmarks/damaging/*.py",
        ],
        ("torch", "litert_torch", "transformers", "edgeverify_models"),
    ),
    "the reference shares no code with the ports": (
        [
            "edgeverify/backends/reference.py",
            "edgeverify/hf/openelm*.py",
            "edgeverify/backends/sessions/reference.py",
        ],
        ("edgeverify_models", "litert_torch"),
    ),
    "quality figures need numpy only": (
        ["edgeverify/suites/quality/statistics.py", "edgeverify/suites/quality/gate.py"],
        (*HEAVY, "edgeverify_models", "edgeverify.backends"),
    ),
    "pytest start-up and the command line are lean": (
        ["edgeverify/cli/**/*.py", "edgeverify/legs/selectors.py", "edgeverify/legs/ports.py"],
        HEAVY,
    ),
}


@pytest.mark.parametrize("rule", NEVER)
def test_never(rule: str) -> None:
    patterns, forbidden = NEVER[rule]
    assert all(files(pattern) for pattern in patterns), f"no file for a pattern of: {rule}"
    assert offences(files(*patterns), forbidden) == []


def test_nothing_imports_the_front_ends() -> None:
    fronts = ("edgeverify.cli.main", "edgeverify.cli.pytest_plugin")
    assert offences(files(*EVERYTHING, "benchmarks/**/*.py"), fronts) == []


# What draws on a terminal uses rich, what makes a page Jinja2; both are core dependencies.
RENDERERS = {
    "terminal.py": "rich",
    "progress.py": "rich",
    "inspection.py": "rich",
    "tables.py": "rich",
    "parts.py": "jinja2",
}


def test_core_and_report_use_the_standard_library_numpy_and_safetensors() -> None:
    paths = files("edgeverify/core/**/*.py", "edgeverify/report/**/*.py")
    assert paths
    foreign = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in paths
        for line, module in imports(path)
        if not is_within(module, STANDARD | {"numpy", "safetensors", "edgeverify"})
        and module.partition(".")[0] != RENDERERS.get(path.name)
    ]
    assert foreign == []


def test_the_rules_see_a_breach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "edgeverify" / "report").mkdir(parents=True)
    path = tmp_path / "edgeverify" / "report" / "x.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
        "def f():\n    from .. import cli\n    from ..core.noise import measure\n"
        "    import torch.nn\n"
    )
    assert offences([path], ("edgeverify.cli", "edgeverify.core.noise", "torch")) == [
        "edgeverify/report/x.py:5 imports edgeverify.cli",
        "edgeverify/report/x.py:6 imports edgeverify.core.noise.measure",
        "edgeverify/report/x.py:7 imports torch.nn",
    ]
    assert breaches(tmp_path) == ["edgeverify/report/x.py:5 imports edgeverify.cli"]


LEFT_OVER = f"import sys; print(*(m for m in {HEAVY!r} if m in sys.modules))"
STARTS = {
    "import edgeverify": "import edgeverify as e; e.Report; e.load_port; dir(e)",
    "edgeverify --help": "from edgeverify.cli.main import main\n"
    "try: main(['--help'])\nexcept SystemExit: pass",
    "edgeverify list": "from edgeverify.cli.main import main; main(['list'])",
    "bad usage": "from edgeverify.cli.main import main; main(['check', 'nope'])",
    "pytest --collect-only": "import pytest; pytest.main(['--collect-only', '-q', '-m', 'parity',"
    " '--model', 'tinyllama', '--rootdir', '.', '-p', 'edgeverify.cli.pytest_plugin'])",
}


@pytest.mark.parametrize("start", STARTS)
def test_start_up_imports_nothing_heavy(start: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{STARTS[start]}\n{LEFT_OVER}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.stdout.split("\n")[-2] == "", f"{start} imported {done.stdout.split(chr(10))[-2]}"


@pytest.mark.parametrize(("command", "seconds"), [("--help", 0.2), ("list", 0.3)])
def test_help_and_list_are_quick(command: str, seconds: float) -> None:
    """In seconds of the processor, which are those of the clock on an idle machine.

    On a busy machine the clock measures the other processes, too.
    """
    times = []
    for _ in range(5):
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "edgeverify.cli.main", command], capture_output=True, check=True
        )
        after = os.times()
        user, system = (after[i] - before[i] for i in (2, 3))  # of finished child processes
        times.append(user + system)
    assert min(times) < seconds


@pytest.mark.slow  # imports everything: 15 s of CPU
def test_the_public_names_are_what_they_say() -> None:
    script = (
        "import edgeverify\n"
        "from edgeverify import Report, load_port, verify, verify_artifact\n"
        "homes = {x.__name__: x.__module__ for x in (Report, load_port, verify, verify_artifact)}\n"
        "assert set(edgeverify.__all__) == set(homes), homes\n"
        "assert all(getattr(edgeverify, name).__module__ == home for name, home in homes.items())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=180)
