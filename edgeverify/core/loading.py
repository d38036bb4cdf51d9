"""Loads the user's own code: ``package.module:ATTR`` or ``path/to/file.py:ATTR``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeverify.core.errors import PortError, UsageError

FORMS = "a registered name, package.module:ATTR or path/to/file.py:ATTR"


def load_attribute(place_and_name: str) -> Any:
    """Imports and returns what ``package.module:ATTR`` or ``path/to/file.py:ATTR`` names.

    Raises:
        UsageError: the text has neither form.
        PortError: the file, module or attribute is missing, or raises when it is imported.
    """
    place, attribute = split(place_and_name)
    module = load_module(place)
    if not hasattr(module, attribute):
        raise PortError(f"has no {attribute!r}", where=place, expected="a name that it defines")
    return getattr(module, attribute)


def load_module(place: str) -> Any:
    """Imports and returns the module that ``package.module`` or ``path/to/file.py`` names.

    Raises:
        PortError: it is missing, or raises when it is imported.
    """
    return _load_file(Path(place)) if is_file(place) else _load_module(place)


def split(name_or_path: str) -> tuple[str, str]:
    """``path/to/file.py:PORT`` → ``("path/to/file.py", "PORT")``.

    Raises:
        UsageError: one of the two is empty, or the attribute is not an identifier.
    """
    place, _, attribute = name_or_path.rpartition(":")
    if not place or not attribute.isidentifier():
        raise UsageError(f"cannot read {name_or_path!r}", where="MODEL", expected=FORMS)
    return place, attribute


def is_file(place: str) -> bool:
    """Checks whether the part before the colon names a file, not a module."""
    return place.endswith(".py") or "/" in place or "\\" in place


def _load_module(name: str) -> Any:
    # A console script's path lacks the working directory, where the user's project is.
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
    importlib.import_module(
        "edgeverify_models.port"
    )  # before the user's folder could hide ``models``
    # The name depends on the whole path, so two files of the same name do not collide.
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
    """Keeps ``folder`` on ``sys.path`` inside the ``with``, so that siblings can be imported."""
    before = list(sys.path)
    sys.path.insert(len(sys.path) if last else 0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _forget_siblings(folder: Path, names: set[str]) -> None:
    """Drops a port's sibling modules: another port may have its own module ``layers``."""
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
