"""Finds a port: by its registered name, in a module, or in a file of the user's own."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeverify.choices import did_you_mean, one_of
from edgeverify.errors import PortError, UsageError

if TYPE_CHECKING:
    from models.port import Port

FORMS = "a registered name, package.module:ATTR or path/to/file.py:ATTR"


def catalogue() -> Mapping[str, Any]:
    """The registered ports, without importing any: name → entry with ``sizes``."""
    try:
        from models import CATALOGUE
    except ImportError as error:
        found = getattr(sys.modules.get("models"), "__file__", None) or "models"
        raise PortError(
            "is not edgeverify's package of ports and hides it",
            where=found,
            fix="rename it, or run from another folder",
        ) from error
    return CATALOGUE


def load_port(name_or_path: str) -> Port:
    """Loads a port.

    Args:
        name_or_path: a registered name (``tinyllama``), ``package.module:ATTR`` or
            ``path/to/file.py:ATTR``.

    Raises:
        UsageError: no such registered name, or none of the three forms.
        PortError: the file, module or attribute is missing, raises when it is imported, or is
            no port.
    """
    check_name(name_or_path)
    if ":" not in name_or_path:
        models = importlib.import_module("models")
        return models.load(name_or_path)
    place, attribute = split(name_or_path)
    port = _port_of(_load(place), attribute, place)
    if port.name in catalogue():
        # A variant made by dataclasses.replace keeps its name, but is not what that name says.
        label = f"{Path(place).stem if is_file(place) else place}:{attribute}"
        return dataclasses.replace(port, name=label)
    return port


def load_attribute(place_and_name: str) -> Any:
    """What ``package.module:ATTR`` or ``path/to/file.py:ATTR`` names.

    Raises:
        UsageError: neither form.
        PortError: the file, module or attribute is missing, or raises when it is imported.
    """
    place, attribute = split(place_and_name)
    module = _load(place)
    if not hasattr(module, attribute):
        raise PortError(f"has no {attribute!r}", where=place, expected="a name that it defines")
    return getattr(module, attribute)


def _load(place: str) -> Any:
    return _load_file(Path(place)) if is_file(place) else _load_module(place)


def check_name(name_or_path: str, size: str | None = None) -> None:
    """Refuses what can be refused without importing the port.

    Raises:
        UsageError: no such registered name or size, or none of the three forms.
        PortError: the file does not exist.
    """
    if ":" in name_or_path:
        place, _ = split(name_or_path)
        if is_file(place) and not Path(place).is_file():
            raise PortError("there is no such file", where=place, expected=f"MODEL to be {FORMS}")
        return
    names = catalogue()
    if name_or_path not in names:
        fix = did_you_mean(name_or_path, list(names))
        if name_or_path.endswith(".py"):
            fix = f"name the port in the file: {name_or_path}:PORT"
        raise UsageError(
            f"there is no model {name_or_path!r}",
            expected=f"one of {', '.join(names)}; or package.module:ATTR or path/to/file.py:ATTR",
            fix=fix,
        )
    if size is not None:
        one_of(f"--size of {name_or_path}", size, list(names[name_or_path].sizes))


def split(name_or_path: str) -> tuple[str, str]:
    """``path/to/file.py:PORT`` → ``("path/to/file.py", "PORT")``.

    Raises:
        UsageError: one of the two is empty, or the attribute is no name.
    """
    place, _, attribute = name_or_path.rpartition(":")
    if not place or not attribute.isidentifier():
        raise UsageError(f"cannot read {name_or_path!r}", where="MODEL", expected=FORMS)
    return place, attribute


def is_file(place: str) -> bool:
    """Whether the part before the colon names a file rather than a module."""
    return place.endswith(".py") or "/" in place or "\\" in place


def _load_module(name: str) -> Any:
    # A console script has no working directory on its path, though the user's project is there.
    with _on_path(Path.cwd(), last=True):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                raise PortError(
                    f"there is no module {error.name!r}",
                    where=name,
                    expected=FORMS,
                    fix="install it, or run from its folder",
                ) from error
            raise _import_failed(name, error) from error
        except (Exception, SystemExit) as error:
            raise _import_failed(name, error) from error


def _load_file(path: Path) -> Any:
    path = path.resolve()
    importlib.import_module("models.port")  # before the user's folder could hide ``models``
    # The name is the whole path's, so that two files of one name do not collide.
    name = f"edgeverify_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PortError("is no Python file", where=path, expected=FORMS)
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[name] = module  # dataclasses look their own module up there
    try:
        with _on_path(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_failed(path, error) from error
    finally:
        _forget_siblings(path.parent, set(sys.modules) - before - {name})
    return module


@contextmanager
def _on_path(folder: Path, *, last: bool = False) -> Iterator[None]:
    """``folder`` is on ``sys.path`` for as long as this lasts, so that siblings can be imported."""
    before = list(sys.path)
    sys.path.insert(len(sys.path) if last else 0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _forget_siblings(folder: Path, names: set[str]) -> None:
    """Drops what a port imported from its own folder: another port's ``layers`` is another's."""
    for name in names:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and Path(file).is_relative_to(folder):
            del sys.modules[name]


def _import_failed(place: object, error: BaseException) -> PortError:
    line = ""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == Path(str(place))
    ]
    if isinstance(error, SyntaxError) and error.lineno is not None:
        line = f":{error.lineno}"
    elif frames:
        line = f":{frames[-1].lineno}"
    told = f"{type(error).__name__}: {error}".rstrip(": ")
    return PortError(
        f"raises when it is imported, {told}",
        where=f"{place}{line}",
        fix="run it with python to see the traceback",
    )


def _port_of(module: Any, attribute: str, place: str) -> Port:
    from models.port import Port

    ports = [name for name, value in vars(module).items() if isinstance(value, Port)]
    if not hasattr(module, attribute):
        raise PortError(
            f"has no {attribute!r}",
            where=place,
            expected=f"the name of a Port ({', '.join(ports)})" if ports else "the name of a Port",
        )
    port = getattr(module, attribute)
    if not isinstance(port, Port):
        kind = (
            f"the class {port.__name__}" if isinstance(port, type) else f"a {type(port).__name__}"
        )
        raise PortError(
            f"{attribute!r} is {kind}",
            where=place,
            expected="an instance of models.port.Port",
            fix=f"this file's ports: {', '.join(ports)}" if ports else None,
        )
    if "tiny" not in port.hf_configs:
        raise PortError(
            f"the port {attribute!r} has no 'tiny' among its hf_configs",
            where=place,
            expected="a size 'tiny' that shows every feature of the family in a few layers",
        )
    return port
