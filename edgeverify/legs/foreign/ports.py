"""Finds the port of a checkpoint by the ``model_type`` of its config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeverify.core.errors import UsageError
from edgeverify.hf.checkpoints import configs
from edgeverify.hf.checkpoints.locate import read_json
from edgeverify.legs.ports import catalogue, load_port
from edgeverify_models.port import Port


def port_for(checkpoint: str) -> Port:
    """Finds the port of a checkpoint.

    Several ports may have the same ``model_type``. Then the port that has a size of exactly this
    config is taken; if there is none, the first whose ``model_config`` accepts the config. Such
    ports are the same family under several names and read the config alike.

    Args:
        checkpoint: a directory, a file beside a ``config.json``, or a hub id of the catalogue.

    Raises:
        UsageError: no port fits, or the config cannot be found without one.
        CheckpointError: ``config.json`` is damaged.
    """
    path = Path(checkpoint).expanduser()
    if not path.exists():
        for name, entry in catalogue().items():
            if checkpoint in entry.hub_ids.values():
                return load_port(name)
        raise _unknown(checkpoint, "is neither a path nor a hub id of a registered model")
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        raise _unknown(checkpoint, "has no config.json that would tell the model's family")
    return of_config(read_json(file), checkpoint)


def of_config(config: Mapping[str, Any], where: object) -> Port:
    """Returns the registered port of a config.

    Raises:
        UsageError: there is none.
    """
    kind = config.get("model_type")
    ports = [load_port(name) for name in catalogue()]
    family = [p for p in ports if any(c.get("model_type") == kind for c in p.hf_configs.values())]
    for port in family:
        if configs.size_of(config, port) != configs.CUSTOM:
            return port
    for port in family:
        try:
            port.model_config(config)
        except Exception:  # config values of any type reach the port; its next sibling may fit
            continue
        return port
    types = sorted({str(c.get("model_type")) for p in ports for c in p.hf_configs.values()})
    raise _unknown(where, f"is of model_type {kind!r}", f"one of {', '.join(types)}")


def _unknown(where: object, what: str, expected: str = "a family that is registered") -> UsageError:
    return UsageError(
        what,
        where=where,
        expected=expected,
        fix="name the port by --model: a registered name, package.module:ATTR or "
        "path/to/file.py:ATTR",
    )
