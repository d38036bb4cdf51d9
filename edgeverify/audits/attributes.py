"""Checks the attributes of the composites (norms and attentions) in every signature.

LiteRT's CPU kernels compute the body of a norm and do not read its composite's epsilon, but a
backend with its own kernel reads it. So no run on this machine shows a wrong epsilon in a signature
or a quantized file that the audit of the config did not read. Only differences are reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from edgeverify.audits.config import FILE, audit_config
from edgeverify.audits.model import Readings
from edgeverify.audits.of_file import of_composites
from edgeverify.core.results import FAIL, Check
from edgeverify.litert.flatbuffer.weights import Weights


def odd_attributes(
    declared: Readings, found: Mapping[str, Weights], signatures: Iterable[str]
) -> tuple[Check, ...]:
    """Returns the attributes of some signatures' composites that differ from the HF config.

    Args:
        declared: readings of the HF config.
        found: signature → its weights.
        signatures: the signatures to read.
    """
    checks: list[Check] = []
    for name in signatures:
        reading = of_composites(found[name])
        read = audit_config(declared, [reading]).checks
        told = (c for c in read if c.outcome == FAIL and c.where)
        checks += [replace(c, where=c.where.replace(FILE, f"{FILE}, {name}", 1)) for c in told]
    return tuple(checks)
