"""The leg ``runtime``: runs the very same file in a runtime other than the LiteRT interpreter.

Whether the file is right is the question of the file's own leg. This leg takes the file as it is.
If the file's leg passed, a runtime is compared with that leg's oracle and floor. If it failed, the
runtime is compared with the interpreter's results, so that no runtime is blamed for the file's
fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeverify.backends import runtimes
from edgeverify.core import taps
from edgeverify.core.case import Case
from edgeverify.core.judge import Baseline, judge_leg, judge_surely
from edgeverify.core.leg import Leg
from edgeverify.core.results import FAIL, LegResult
from edgeverify.core.trace import Trace
from edgeverify.litert.flatbuffer.instrument import instrumented_copy

# Two correct runs differ by both their errors, which are independent: by the square root of two.
BOTH = float(np.sqrt(2))


@dataclass(frozen=True)
class RuntimeBaseline:
    """What the results of a runtime are compared with.

    Attributes:
        baseline: of the file's own leg, or from ``of_interpreter`` if that leg failed.
        expected: the ``step/tap`` keys of the file's own leg.
        cache: another cache directory than the default one.
    """

    baseline: Baseline
    expected: Sequence[str]
    cache: Path | None = None


def runtime_leg(
    leg: Leg, path: Path, case: Case, interpreter: Trace, against: RuntimeBaseline
) -> LegResult:
    """Runs a file in another runtime and judges its logits and caches.

    If they fail, the file runs once more as a copy that also returns its inner taps, to name the
    first tap that differs.

    Args:
        leg: names the runtime, ``compiled_model`` or ``tf_lite``, and the file's recipe.
        path: the file.
        case: the steps.
        interpreter: the LiteRT interpreter's trace of the same file and case.
        against: what the results are compared with.

    Returns:
        The leg. Its notes say whether its results are bitwise those of the interpreter.

    Raises:
        ArtifactError: the runtime cannot open or run the file.
    """
    outer, baseline = outer_keys(against.expected), against.baseline
    trace = runtimes.run(path, case, leg.runtime)
    result, baseline = judge_surely(
        lambda against: judge_leg(leg, trace, None, against, outer, case.starts), baseline
    )
    if result.outcome == FAIL:
        with instrumented_copy(path, root=against.cache) as copy:
            tapped = runtimes.run(path, case, leg.runtime, instrumented=copy)
        named = judge_leg(leg, tapped, None, baseline, against.expected, case.starts)
        # A second run may name the tap, but must not revoke the first run's verdict.
        result = named if named.outcome == FAIL else result
    return replace(result, notes=(*result.notes, _compared(trace, interpreter, outer)))


def of_interpreter(interpreter: Trace, baseline: Baseline) -> Baseline:
    """Returns a baseline whose oracle is the interpreter's trace, for a file that is itself wrong.

    Args:
        interpreter: its trace of the file; float32.
        baseline: of the file's own leg; its floor says how far two correct runs may be apart.
    """
    oracle = Trace(
        {key: array.astype(np.float64) for key, array in interpreter.arrays.items()},
        unavailable=interpreter.unavailable,
    )

    def beside(baseline: Baseline) -> Baseline:
        floor = {key: BOTH * rows for key, rows in baseline.floor.items()}
        redraw = baseline.redraw
        again = None if redraw is None else lambda: beside(redraw())
        return Baseline(oracle, floor, baseline.isolated_floor, interpreter, again)

    return beside(baseline)


def outer_keys(expected: Sequence[str]) -> list[str]:
    """The keys of the model's own outputs: logits and caches."""
    return [key for key in expected if taps.is_outer(taps.split(key)[1])]


def _compared(trace: Trace, interpreter: Trace, keys: Sequence[str]) -> str:
    """Says ``bitwise what the LiteRT interpreter gives``, or how many outputs differ."""
    shared = [key for key in keys if key in trace and key in interpreter]
    other = sum(not _same(trace.arrays, interpreter.arrays, key) for key in shared)
    if not shared:
        return "it gave none of the LiteRT interpreter's outputs"
    if not other:
        return "bitwise what the LiteRT interpreter gives"
    return f"{other} of {len(shared)} outputs are not bitwise the LiteRT interpreter's"


def _same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], key: str) -> bool:
    return one[key].shape == other[key].shape and one[key].tobytes() == other[key].tobytes()
