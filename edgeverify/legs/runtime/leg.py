"""The leg ``runtime``: another runtime than the LiteRT interpreter, on the very same file.

Whether the file is right is its own leg's question. Here the file is taken as it is: where its leg
passed, a runtime is held against that leg's oracle and floor; where it did not, against what the
interpreter makes of the file, so that no runtime is charged with the file's fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeverify.backends import runtimes, tflite
from edgeverify.core import taps
from edgeverify.core.case import Case
from edgeverify.core.compare import Baseline, judge_leg
from edgeverify.core.leg import Leg
from edgeverify.core.results import FAIL, LegResult
from edgeverify.core.trace import Trace

# Two right runs differ by both their errors, which are independent: by the root of two.
BOTH = float(np.sqrt(2))


@dataclass(frozen=True)
class Judged:
    """What the results of a runtime are compared with.

    Attributes:
        baseline: of the file's own leg, or from ``of_interpreter`` where that leg failed.
        expected: the ``step/tap`` keys of the file's own leg.
        cache: another cache than the default one.
    """

    baseline: Baseline
    expected: Sequence[str]
    cache: Path | None = None


def runtime_leg(leg: Leg, path: Path, case: Case, interpreter: Trace, judged: Judged) -> LegResult:
    """Runs a file in another runtime and judges its logits and caches.

    Where they fail, the file runs once more as a copy that also returns its inner taps, so that
    the first one that differs is named.

    Args:
        leg: names the runtime, ``compiled_model`` or ``tf_lite``, and the file's recipe.
        path: the file.
        case: the steps.
        interpreter: what the LiteRT interpreter gave of the same file and case.
        judged: what the results are compared with.

    Returns:
        The leg. Its notes say whether its results are bitwise those of the interpreter.

    Raises:
        ArtifactError: the runtime cannot open or run the file.
    """
    outer, baseline = outer_keys(judged.expected), judged.baseline
    trace = runtimes.run(path, case, leg.runtime)
    result = judge_leg(leg, trace, None, baseline, outer, case.starts)
    if result.outcome == FAIL:
        with tflite.instrumented_copy(path, root=judged.cache) as copy:
            tapped = runtimes.run(path, case, leg.runtime, instrumented=copy)
        named = judge_leg(leg, tapped, None, baseline, judged.expected, case.starts)
        # A second run may name the tap, but never take the first one's verdict back.
        result = named if named.outcome == FAIL else result
    return replace(result, notes=(*result.notes, _compared(trace, interpreter, outer)))


def of_interpreter(interpreter: Trace, baseline: Baseline) -> Baseline:
    """What the interpreter made of a file as the truth, for a file that is not right itself.

    Args:
        interpreter: its trace of the file; float32.
        baseline: of the file's own leg, whose floor says how far two right runs may be apart.
    """
    oracle = Trace(
        {key: array.astype(np.float64) for key, array in interpreter.arrays.items()},
        unavailable=interpreter.unavailable,
    )
    floor = {key: BOTH * rows for key, rows in baseline.floor.items()}
    return Baseline(oracle, floor, baseline.isolated_floor, interpreter)


def outer_keys(expected: Sequence[str]) -> list[str]:
    """Those of the model's own outputs: logits and caches."""
    return [key for key in expected if taps.is_outer(taps.split(key)[1])]


def _compared(trace: Trace, interpreter: Trace, keys: Sequence[str]) -> str:
    """``bitwise what the LiteRT interpreter gives``, or how many outputs are not."""
    shared = [key for key in keys if key in trace and key in interpreter]
    other = sum(not _same(trace.arrays, interpreter.arrays, key) for key in shared)
    if not shared:
        return "it gave none of the LiteRT interpreter's outputs"
    if not other:
        return "bitwise what the LiteRT interpreter gives"
    return f"{other} of {len(shared)} outputs are not bitwise the LiteRT interpreter's"


def _same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], key: str) -> bool:
    return one[key].shape == other[key].shape and one[key].tobytes() == other[key].tobytes()
