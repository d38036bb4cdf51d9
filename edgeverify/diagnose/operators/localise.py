"""Names the operators of a failing file, for the report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeverify.core import taps
from edgeverify.core.case import Case, Step
from edgeverify.core.results import FAIL, Finding, LegResult
from edgeverify.diagnose.operators.graph import FlatGraph
from edgeverify.diagnose.operators.model_values import record
from edgeverify.diagnose.operators.sources import Source, find_sources
from edgeverify.litert.flatbuffer import ModelFile

if TYPE_CHECKING:
    from torch import nn

# Above this size, only one step is examined, the one with the fewest rows, instead of one step of
# each signature.
LARGE_FILE = 200 * 2**20
NOTHING_DIFFERS = (
    "no operator was seen to compute anything but the model's values: look at the kernels (another "
    "--kernel), or at an operator that edgeverify does not know"
)
_CLASS = re.compile(r"(?:[\w.]+\.)?([A-Za-z]\w*?)_([a-z_]\w*|\d+)$")


def op_findings(
    path: Path,
    leg: LegResult,
    model: nn.Module,
    case: Case,
) -> tuple[Finding, ...]:
    """Returns one finding ``conversion.op`` for each operator that causes the leg's failure.

    Args:
        path: the file.
        leg: the failed conversion leg.
        model: the re-authored model that the file was converted from.
        case: what was run.

    Returns:
        The findings, by signature and execution order. If the file's graph computes the same as the
        model, one ``conversion.op.unchecked`` says that the graph is not the cause.
    """
    file = ModelFile(path)
    steps = failing_steps(leg, case)
    if path.stat().st_size > LARGE_FILE:
        steps = sorted(steps, key=lambda step: step.length)[:1]
    if not steps:
        return ()
    values = record(model, case, {step.name for step in steps})
    findings = []
    for step in steps:
        graph = FlatGraph(file, step.signature)
        for source in find_sources(graph, values.pop(step.name)):
            findings.append(
                Finding(
                    "conversion.op",
                    leg.name,
                    step.name,
                    describe(source, step.signature),
                    operator=f"{source.op.index} {source.op.call.name}",
                    signature=step.signature,
                    module=module_of(source),
                )
            )
    return tuple(findings) or (Finding("conversion.op.unchecked", leg.name, "", NOTHING_DIFFERS),)


def failing_steps(leg: LegResult, case: Case) -> list[Step]:
    """Returns the first step of each signature in which a tap fails."""
    failed = {taps.split(result.tap)[0] for result in leg.taps if result.outcome == FAIL}
    found: dict[str, Step] = {}
    for step in case.steps:
        if step.name in failed:
            found.setdefault(step.signature, step)
    return list(found.values())


def describe(source: Source, signature: str) -> str:
    """Describes a source in one sentence: which operator, where, and how large its error is."""
    op = source.op
    inside = f" in the body of op {op.way[0]}" if op.way else ""
    ratio = source.error_ratio
    far = "" if ratio is None else f" ({ratio:.2g} times what rounding a constant explains)"
    said = f"its inputs agree and its output differs{far}"
    if len(source.suspects) > 1:
        others = ", ".join(f"{o.index} {o.call.name}" for o in source.suspects[1:])
        said = (
            f"it or one of {others}: the inputs of these agree, and what they make differs{far}; "
            "between them nothing is a value of the model"
        )
    return (
        f"op {op.index} {op.call.name}{inside} (subgraph {op.subgraph}, signature {signature}), "
        f"tensor {op.tensor_name}, torch module {module_of(source)}: {said}"
    )


def module_of(source: Source) -> str:
    """Returns a source's torch module, from its expected value or from its tensor's name.

    The converter joins equal operators of several modules under the first one's name, so the value
    takes precedence.
    """
    if source.expected is not None:
        return source.expected.module or "(the model itself)"
    return ".".join(module_names(source.op.tensor_name.split("/"))) or "(unknown)"


def module_names(parts: Sequence[str]) -> list[str]:
    """Returns the module names in the parts of a tensor's name.

    ``…attention.TransformerBlock_0`` gives ``TransformerBlock_0``, ``…Linear_w1;1`` gives ``w1``.
    """
    names = []
    for part in parts:
        found = _CLASS.search(part.split(";")[0])
        if found:
            kind, name = found.groups()
            names.append(f"{kind}_{name}" if name.isdigit() else name)
    return [name for name in names if name != "module"]
