"""All faults, in one list, and how to choose among them."""

from __future__ import annotations

from collections.abc import Sequence

from edgeverify.core.choices import one_of
from edgeverify.core.errors import UsageError
from edgeverify.suites.selftest.faults import (
    attention,
    cache,
    config,
    converter,
    decoding,
    embedding,
    feed_forward,
    harmless,
    head,
    loader,
    mask,
    norm,
    rope,
)
from edgeverify.suites.selftest.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *embedding.FAULTS,
    *norm.FAULTS,
    *rope.FAULTS,
    *attention.FAULTS,
    *mask.FAULTS,
    *cache.FAULTS,
    *feed_forward.FAULTS,
    *head.FAULTS,
    *loader.FAULTS,
    *config.FAULTS,
    *decoding.FAULTS,
    *converter.FAULTS,
    *harmless.FAULTS,
)


def find(name: str) -> Fault:
    """The fault of that name.

    Raises:
        UsageError: there is none; the message has the nearest names.
    """
    names = [fault.name for fault in FAULTS]
    return FAULTS[names.index(one_of("--fault", name, names))]


def choose(names: Sequence[str], ports: Sequence[str]) -> tuple[Fault, ...]:
    """The named faults, or all of them, that apply to one of the ports at least.

    Raises:
        UsageError: no such fault, or none of the ports has it.
    """
    for name in names:
        fault = find(name)
        if not set(fault.ports) & set(ports):
            raise UsageError(
                f"{name!r} does not apply to {', '.join(ports)}",
                where="--fault",
                expected=f"one of the ports {', '.join(fault.ports)}",
            )
    return tuple(
        fault
        for fault in FAULTS
        if set(fault.ports) & set(ports) and (not names or fault.name in names)
    )
