"""Contracts of cache, RoPE, mask, padding and batch, tested with generated inputs.

Each contract is a plain function over a *session* (``edgeverify.backends.sessions``) that the
reference, the re-authored model and the converted file implement alike. ``examine`` lets Hypothesis
drive one of them; ``reproduce`` tests a failed case again.
"""

from __future__ import annotations

import sys
from typing import Any

from edgeverify.core.quiet import without_chatter
from edgeverify.suites.invariants.batch import BATCH
from edgeverify.suites.invariants.cache import CACHE
from edgeverify.suites.invariants.machine import MACHINE
from edgeverify.suites.invariants.mask import MASK
from edgeverify.suites.invariants.model import Facts, Invariant, NotApplicableError, Violation
from edgeverify.suites.invariants.padding import PADDING
from edgeverify.suites.invariants.rope import ROPE
from edgeverify.suites.invariants.rope_in_cache import KEYS

INVARIANTS: dict[str, Invariant] = {
    invariant.name: invariant
    for invariant in (*ROPE, *KEYS, *CACHE, *MASK, *PADDING, *BATCH, MACHINE)
}

__all__ = ["INVARIANTS", "Facts", "Invariant", "NotApplicableError", "Violation", "reproduce"]


def reproduce(
    model: str, invariant: str, implementation: str, *, arguments: dict[str, Any], **selectors: Any
) -> None:
    """Tests one invariant with given arguments and prints the result.

    Args:
        model: as on the command line.
        invariant: its name, e.g. ``cache.split``.
        implementation: ``reference``, ``reauthored`` or ``tflite-{kernel}``.
        arguments: as a failure shows them.
        selectors: what to run: the fields of ``edgeverify.legs.selectors.Selectors``.

    Raises:
        SystemExit: it does not hold (status 1), or the input is bad (status 2).
    """
    from edgeverify.core.choices import one_of
    from edgeverify.core.errors import EdgeVerifyError
    from edgeverify.legs.selectors import Selectors
    from edgeverify.suites.invariants.examination import examination

    try:
        one_of("invariant", invariant, list(INVARIANTS))
        examined = examination(model, Selectors.of(**selectors))
        without_chatter(lambda: examined.ask(invariant, implementation, arguments))
    except Violation as violation:
        raise SystemExit(f"{invariant} on {implementation}: {violation}") from None
    except EdgeVerifyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{invariant} holds on {implementation}")
