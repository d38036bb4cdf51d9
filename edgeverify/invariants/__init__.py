"""Contracts of cache, RoPE, mask, padding and batch, asked for with generated inputs.

Each is a plain function over a *session* (``edgeverify.sessions``) that the reference, the
re-authored model and the converted file implement alike. ``examine`` lets Hypothesis drive one of
them; ``reproduce`` asks once more for a case that failed.
"""

from __future__ import annotations

from typing import Any

from edgeverify.invariants.batch import BATCH
from edgeverify.invariants.cache import CACHE
from edgeverify.invariants.keys import KEYS
from edgeverify.invariants.machine import MACHINE
from edgeverify.invariants.mask import MASK
from edgeverify.invariants.model import Facts, Invariant, NotApplicableError, Violation
from edgeverify.invariants.padding import PADDING
from edgeverify.invariants.rope import ROPE

INVARIANTS: dict[str, Invariant] = {
    invariant.name: invariant
    for invariant in (*ROPE, *KEYS, *CACHE, *MASK, *PADDING, *BATCH, MACHINE)
}

__all__ = ["INVARIANTS", "Facts", "Invariant", "NotApplicableError", "Violation", "reproduce"]


def reproduce(
    model: str, invariant: str, implementation: str, *, arguments: dict[str, Any], **selectors: Any
) -> None:
    """Asks for one invariant with given arguments.

    Args:
        model: as on the command line.
        invariant: its name, e.g. ``cache.split``.
        implementation: ``reference``, ``reauthored`` or ``tflite-{kernel}``.
        arguments: as a failure shows them.
        selectors: what to run: the fields of ``edgeverify.selectors.Selectors``.

    Raises:
        Violation: it does not hold.
        EdgeVerifyError: bad input.
    """
    from edgeverify.invariants.examination import Examination
    from edgeverify.ports import load_port
    from edgeverify.selectors import Selectors, one_of
    from edgeverify.verify import prepare

    one_of("invariant", invariant, list(INVARIANTS))
    run, _ = prepare(load_port(model), Selectors.of(**selectors), verbose=False, progress=None)
    examination = Examination(run, model)
    examination.ask(invariant, implementation, arguments)
    print(f"{invariant} holds on {implementation}")
