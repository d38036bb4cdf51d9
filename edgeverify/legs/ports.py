"""Finds a port: by its registered name, in a module, or in a user's own file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeverify.core.choices import did_you_mean, one_of
from edgeverify.core.errors import PortError, UsageError
from edgeverify.core.loading import FORMS, is_file, load_module, split
from edgeverify_models import CATALOGUE, load

if TYPE_CHECKING:
    from edgeverify_models.port import Port
ARTIFACTS = (".tflite", ".litertlm", ".task")


def catalogue() -> Mapping[str, Any]:
    """The registered ports, name → entry with ``sizes``; imports none of them."""
    return CATALOGUE


def load_port(name_or_path: str) -> Port:
    """Loads a port.

    Args:
        name_or_path: a registered name (``tinyllama``), ``package.module:ATTR`` or
            ``path/to/file.py:ATTR``.

    Raises:
        UsageError: no such registered name, or none of the three forms.
        PortError: the file, module or attribute is missing, raises when it is imported, or is not a
            port.
    """
    check_name(name_or_path)
    if ":" not in name_or_path:
        return load(name_or_path)
    place, attribute = split(name_or_path)
    port = _port_of(load_module(place), attribute, place)
    if port.name in catalogue():
        # A variant made by dataclasses.replace keeps its name, but is not the port of that name.
        label = f"{Path(place).stem if is_file(place) else place}:{attribute}"
        return dataclasses.replace(port, name=label)
    return port


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
        elif name_or_path.endswith(ARTIFACTS):
            fix = "a file is checked by: edgeverify check-artifact FILE --checkpoint DIR"
        raise UsageError(
            f"there is no model {name_or_path!r}",
            expected=f"one of {', '.join(names)}; or package.module:ATTR or path/to/file.py:ATTR",
            fix=fix,
        )
    if size is not None:
        one_of(f"--size of {name_or_path}", size, list(names[name_or_path].sizes))


def _port_of(module: Any, attribute: str, place: str) -> Port:
    from edgeverify_models.port import Port

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
            expected="an instance of edgeverify_models.port.Port",
            fix=f"this file's ports: {', '.join(ports)}" if ports else None,
        )
    if "tiny" not in port.hf_configs:
        raise PortError(
            f"the port {attribute!r} has no 'tiny' among its hf_configs",
            where=place,
            expected="a size 'tiny' that shows every feature of the family in a few layers",
        )
    return port
