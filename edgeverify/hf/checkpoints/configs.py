"""Finds a checkpoint's config, checks it against the port, and names the port's size."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from edgeverify.core.errors import CheckpointError, UsageError
from edgeverify.hf.checkpoints.expected import Expected, expected_tensors, some
from edgeverify.hf.checkpoints.locate import Weights, read_json
from edgeverify.hf.config import config_differences, meta_model
from edgeverify.hf.remembered import described

if TYPE_CHECKING:
    from edgeverify_models.port import Port

CUSTOM = "custom"
# Keys whose value is how often something is built. The largest published models have 126 layers and
# 512 experts.
_COUNTS = re.compile(r"(^|_)(layers?|experts)$")
_MOST = 10_000


def require_size(port: Port, size: str | None) -> None:
    """Refuses a size that the port does not have.

    Raises:
        UsageError: there is no such size; lists the port's sizes.
    """
    if size is not None and size not in port.hf_configs:
        raise UsageError(
            f"port {port.name!r} has no size {size!r}",
            where="--size",
            expected=f"one of {', '.join(port.hf_configs)}",
        )


def of_files(weights: Weights, port: Port, size: str | None) -> tuple[dict[str, Any], object]:
    """Reads ``config.json`` beside the weights, or returns the config of ``size`` if absent.

    Returns:
        The config and its origin, for messages.

    Raises:
        CheckpointError: there is no config, or it is damaged, of another family, or not that of
            ``size``.
    """
    path = weights.directory / "config.json"
    if path.is_file():
        config = read_json(path)
        require_family(config, port, path)
        require_agreement(config, port, size, path)
        return config, path
    if size is None:
        raise CheckpointError(
            "has no config.json" if weights.where.is_dir() else "has no config.json beside it",
            where=weights.where,
            expected="the config that the weights belong to",
            fix=f"put it there, or give --size ({', '.join(port.hf_configs)})",
        )
    return dict(port.hf_configs[size]), f"port {port.name!r}, size {size!r}"


def require_family(config: Mapping[str, Any], port: Port, where: object) -> None:
    """Refuses a config of another family.

    Raises:
        CheckpointError: none of the port's configs has this ``model_type``.
    """
    types = sorted({str(known.get("model_type")) for known in port.hf_configs.values()})
    found = config.get("model_type")
    if found not in types:
        raise CheckpointError(
            f"model_type is {found!r}" if found is not None else "there is no model_type",
            where=where,
            expected=f"{' or '.join(map(repr, types))} for port {port.name!r}",
            fix="take a checkpoint of this family, or the port of that one (edgeverify list)",
        )


def require_agreement(
    config: Mapping[str, Any], port: Port, size: str | None, where: object
) -> None:
    """Refuses a requested size that is not the checkpoint's.

    Raises:
        CheckpointError: the configs differ; names the keys.
    """
    if size is None:
        return
    differing = _differences(config, port.hf_configs[size], where)
    if differing:
        told = [f"{key} is {mine!r}, not {theirs!r}" for key, (mine, theirs) in differing.items()]
        raise CheckpointError(
            f"is not the config of size {size!r}: {some(told, quote=False)}",
            where=where,
            expected=f"size {size!r} of port {port.name!r}",
            fix="leave --size out: the checkpoint's own config decides",
        )


def build_reference(config: Mapping[str, Any], port: Port, where: object) -> nn.Module:
    """Builds the reference on the meta device and checks that the port's config can be built.

    Raises:
        CheckpointError: one of the two refuses the config.
    """
    _refuse_endless(config, where)
    try:
        model = meta_model(config)
    except Exception as error:  # config values of any type reach transformers' constructors
        key = _culprit(config, lambda changed: meta_model(changed))
        raise _refused("transformers", error, where, key) from error
    _require_port(config, port, where)
    return model


def expected_of(
    config: Mapping[str, Any], port: Port, where: object, cache: Path | None
) -> Expected:
    """Returns the tensors of a config's reference, which is built only if they are not cached.

    Raises:
        CheckpointError: as for ``build_reference``.
    """

    def make() -> Any:
        found = expected_tensors(build_reference(config, port, where))
        shapes = [[name, list(shape)] for name, shape in found.shapes.items()]
        return [found.model, shapes, dict(found.tied), dict(found.untied_head), list(found.ignored)]

    told = described("expected tensors", config, ("hf/checkpoints/expected.py",), make, cache)
    _require_port(config, port, where)
    model, shapes, tied, untied, ignored = told
    sizes = {name: tuple(shape) for name, shape in shapes}
    return Expected(model, sizes, tied, untied, tuple(ignored))


def _require_port(config: Mapping[str, Any], port: Port, where: object) -> None:
    try:
        port.model_config(config)
    except Exception as error:  # config values of any type reach the port's constructors
        key = _culprit(config, port.model_config)
        raise _refused(f"port {port.name!r}", error, where, key) from error


def size_of(config: Mapping[str, Any], port: Port) -> str:
    """Returns the port's size that describes the same model, or ``"custom"``."""
    for size, known in port.hf_configs.items():
        if not _differences(config, known, f"port {port.name!r}, size {size!r}"):
            return size
    return CUSTOM


def _differences(
    config: Mapping[str, Any], known: Mapping[str, Any], where: object
) -> dict[str, tuple[Any, Any]]:
    try:
        return config_differences(config, known)
    except Exception as error:  # as in build_reference
        raise _refused("transformers", error, where) from error


def _refuse_endless(config: Mapping[str, Any], where: object) -> None:
    """Refuses a number of layers or experts that it would take hours to build."""
    for key, value in config.items():
        if _COUNTS.search(key) and isinstance(value, int) and value > _MOST:
            raise CheckpointError(
                f"{key} is {value}",
                where=where,
                expected=f"at most {_MOST}",
                fix="correct the key",
            )


def _culprit(config: Mapping[str, Any], build: Callable[[dict[str, Any]], object]) -> str:
    """Names each key without which a config can be built, with its value; "" if there is none."""
    found = []
    for key, value in config.items():
        if key == "model_type":
            continue
        try:
            build({other: held for other, held in config.items() if other != key})
        except Exception:
            continue
        found.append(f"{key} is {value!r}")
    return " or ".join(found)


def _refused(who: str, error: Exception, where: object, key: str = "") -> CheckpointError:
    reason = str(error)
    if isinstance(error, KeyError):
        reason = f"there is no {reason}"
    reason = "; ".join(filter(None, [key, reason or type(error).__name__]))
    return CheckpointError(
        f"{who} cannot build a model from this config ({reason})",
        where=where,
        expected="a whole config.json of a causal language model",
        fix="correct or restore the named key",
    )
