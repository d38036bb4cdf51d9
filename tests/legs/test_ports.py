from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeverify.core.errors import EdgeVerifyError, PortError, UsageError
from edgeverify.legs.ports import load_port

# The cheapest real port: nothing of it is built.
PORT = """\
from __future__ import annotations

from dataclasses import dataclass

from edgeverify_models.port import Port


@dataclass
class Facts:  # dataclasses look their module up in sys.modules
    width: int = 1


PORT = Port("{name}", {{"{size}": {{}}}}, "{size}", {{}}, dict, Facts, ())
NUMBER = 3
"""


def write(path: Path, name: str = "mine", size: str = "tiny", text: str = PORT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(name=name, size=size))
    return path


def error_of(name_or_path: str, kind: type[EdgeVerifyError] = PortError) -> str:
    with pytest.raises(kind) as caught:
        load_port(name_or_path)
    return str(caught.value)


def test_a_registered_name() -> None:
    assert load_port("tinyllama").name == "tinyllama"


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    text = error_of("gemma", UsageError)
    assert text.startswith("there is no model 'gemma'; expected one of gemma1, gemma2, tinyllama")
    assert text.endswith("did you mean 'gemma2' or 'gemma1'?")


def test_a_file_leaves_sys_path_as_it_was(tmp_path: Path) -> None:
    before = list(sys.path)
    assert load_port(f"{write(tmp_path / 'a.py')}:PORT").name == "mine"
    assert sys.path == before


def test_two_files_of_one_name_do_not_collide(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(
            tmp_path / name / "port.py",
            text="from helper import NAME\n"
            + PORT.replace('Port("{name}"', "Port(NAME").replace(
                "from __future__ import annotations\n", ""
            ),
        )
        (tmp_path / name / "helper.py").write_text(f"NAME = {name!r}")
    first = load_port(f"{tmp_path}/one/port.py:PORT")
    second = load_port(f"{tmp_path}/two/port.py:PORT")
    again = load_port(f"{tmp_path}/one/port.py:PORT")
    assert [port.name for port in (first, second, again)] == ["one", "two", "one"]
    assert "helper" not in sys.modules
    assert "port" not in sys.modules


def test_a_relative_path_and_a_module_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "ev_package" / "port.py", name="inner")
    (tmp_path / "ev_package" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_port("ev_package/port.py:PORT").name == "inner"
    assert load_port("ev_package.port:PORT").name == "inner"
    assert sys.path == before
    for name in ("ev_package", "ev_package.port"):
        monkeypatch.delitem(sys.modules, name)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    assert error_of(f"{tmp_path}/no.py:PORT").startswith(f"{tmp_path}/no.py: there is no such file")


def test_a_module_that_is_missing() -> None:
    assert error_of("no_such_package.port:PORT") == (
        "no_such_package.port: there is no module 'no_such_package'; expected a registered name, "
        "package.module:ATTR or path/to/file.py:ATTR; install it, or run from its folder"
    )


def test_an_attribute_that_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.py")
    assert error_of(f"{path}:PROT") == f"{path}: has no 'PROT'; expected the name of a Port (PORT)"


def test_an_attribute_that_is_no_port(tmp_path: Path) -> None:
    path = write(tmp_path / "a.py")
    assert error_of(f"{path}:NUMBER") == (
        f"{path}: 'NUMBER' is a int; expected an instance of edgeverify_models.port.Port;"
        " this file's ports: PORT"
    )
    assert "'Facts' is the class Facts" in error_of(f"{path}:Facts")


def test_a_port_without_tiny(tmp_path: Path) -> None:
    path = write(tmp_path / "a.py", size="1b")
    assert error_of(f"{path}:PORT") == (
        f"{path}: the port 'PORT' has no 'tiny' among its hf_configs; expected a size 'tiny' that "
        "shows every feature of the family in a few layers"
    )


@pytest.mark.parametrize(
    ("source", "where", "what"),
    [
        (
            "import no_such_thing_xyz",
            ":1",
            "ModuleNotFoundError: No module named 'no_such_thing_xyz'",
        ),
        ("x = 1\ny = x / 0", ":2", "ZeroDivisionError: division by zero"),
        ("x = 1\n\ndef f(:", ":3", "SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(4)", ":2", "SystemExit: 4"),
        ("from . import x", ":1", "ImportError: attempted relative import"),
    ],
    ids=lambda value: value.split(":")[0].split("\n")[0],
)
def test_a_file_that_raises(tmp_path: Path, source: str, where: str, what: str) -> None:
    path = tmp_path / "a.py"
    path.write_text(source)
    loaded = {name for name in sys.modules if name.startswith("edgeverify_user_")}
    text = error_of(f"{path}:PORT")
    assert text.startswith(f"{path}{where}: raises when it is imported, {what}")
    assert text.endswith("run it with python to see the traceback")
    assert {name for name in sys.modules if name.startswith("edgeverify_user_")} == loaded
