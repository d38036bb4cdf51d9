"""What to do next: one thing, and one command."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeverify.core.results import FAIL, UNCHECKED, LegResult, Report
from edgeverify.report.cause import CODE, CONFIG, MISPLACED, OPERATOR, OTHER, WEIGHTS, Cause

# Options of ``edgeverify check`` that ``edgeverify.suites.check`` takes, too.
IN_PYTHON = ("kernel", "size", "cache", "memory_budget")


@dataclass(frozen=True)
class Advice:
    """One thing to do, and the command that goes with it."""

    text: str
    command: str = ""


def advice(report: Report, causes: Sequence[Cause]) -> Advice:
    """Of a report that is no pass: what a person does first."""
    if report.outcome == UNCHECKED:
        return _unchecked(report)
    if causes:
        return _of_cause(report, causes[0])
    return _without_cause(report)


def command(case: Mapping[str, Any], *switches: str, **options: str) -> str:
    """The command that made a report, with options added; in Python where it was made there.

    Args:
        case: the report's; ``command`` is what was asked for.
        switches: of the command line alone, e.g. ``-v``.
        options: long options, e.g. ``kernel="builtin"``; "" takes one away.
    """
    asked = str(case.get("command", ""))
    if not asked:
        given = [f", {name}={value!r}" for name, value in options.items() if name in IN_PYTHON]
        return f"edgeverify.verify(port{''.join(given)})"
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        asked = re.sub(rf" {flag} (?:'[^']*'|\S+)", "", asked)
        asked += f" {flag} {value}" if value else ""
    return " ".join([asked, *switches])


def _file(case: Mapping[str, Any]) -> str:
    """The port as a reader finds it: ``my_port.py``, or its name."""
    name = str(case.get("model", "")) or "the port"
    found = re.search(r"(?:^| )'?([^\s']+\.py):\w+", str(case.get("command", "")))
    return found.group(1) if found else name.partition(":")[0]


def _of_cause(report: Report, cause: Cause) -> Advice:
    case = report.case
    if cause.kind == OPERATOR:
        text = "the file's graph is wrong, not a kernel; see that operator in Model Explorer:"
        return Advice(text, command(case, model_explorer="nodes.json"))
    if option := re.search(r"\(--([a-z-]+) ([\w.-]+)\)", cause.text):
        named = {option.group(1).replace("-", "_"): option.group(2)}
        return Advice("take the option that would do:", command(case, **named))
    if case.get("file"):
        return Advice("make the file anew, then:", command(case))
    if cause.kind == OTHER:
        return Advice("see all that the file has instead:", command(case, "-v"))
    if cause.leg.startswith("quantization"):
        text = "make the file anew; if it is the same again, the quantizer is to blame:"
        return Advice(text, command(case, cache="fresh-cache"))
    if cause.leg == "conversion":
        text = "convert anew; if it is the same again, the converter is to blame:"
        return Advice(text, command(case, cache="fresh-cache"))
    return Advice(f"{_repair(cause, _file(case))}, then:", command(case))


def _repair(cause: Cause, file: str) -> str:
    if cause.kind == CONFIG and "ModelConfig" in cause.places:
        return f"{cause.repair} in {file} (model_config)"
    if cause.kind == CONFIG:
        return f"correct the model class in {file} (its model_config is right)"
    if cause.kind == MISPLACED:
        return f"correct how {file} maps the checkpoint's names (tensor_names)"
    if cause.kind == WEIGHTS:
        return f"load it unchanged in {file}"
    if cause.kind == CODE:
        return f"correct it in {file}"
    return f"correct {file}"


def _kernel(report: Report) -> Advice:
    """Whether it is the kernel's: the same file with other kernels."""
    case = report.case
    other = "builtin" if case.get("kernel", "xnnpack") != "builtin" else "reference"
    return Advice("see whether other kernels do it right:", command(case, kernel=other))


def _without_cause(report: Report) -> Advice:
    failed = [leg for leg in report.legs.values() if leg.outcome == FAIL]
    if not failed:
        return _of_suites(report)
    leg = failed[0]
    if leg.name != "authoring":
        return _kernel(report)
    tap = _first(leg)
    look = next((f.message for f in report.findings
                 if f.id == "authoring.divergence" and "Look at " in f.message), "")  # fmt: skip
    at = look.partition("Look at ")[2].rstrip(".") or f"what makes {tap}"
    return Advice(f"look in {_file(report.case)} at {at}, then:", command(report.case))


def _first(leg: LegResult) -> str:
    first = leg.first_divergence
    return first.tap.partition("/")[2] if first else leg.name


def _of_suites(report: Report) -> Advice:
    """Goldens and invariants that fail while every leg passes."""
    for golden in report.goldens:
        if golden.outcome == FAIL:
            last = golden.lines[-1] if golden.lines else ""
            said, _, update = last.partition(": ")
            if update.startswith("edgeverify"):
                return Advice(f"{said}:", update)
            return Advice(last or "look at it")
    if any(result.outcome == FAIL for result in report.invariants):
        text = "see the shortest case and how to run it again:"
        return Advice(text, command(report.case, "--invariants", "-v"))
    return Advice("see all that was found:", command(report.case, "-v"))


def _unchecked(report: Report) -> Advice:
    case = report.case
    memory = str(report.environment.get("memory", ""))
    legs = list(report.legs.values())
    if memory and legs and all(leg.reason == memory for leg in legs):
        if " --memory-budget " in str(case.get("command", "")):
            text = "raise --memory-budget, or leave it out:"
            return Advice(text, command(case, memory_budget=""))
        text = "use a machine with more memory, or a smaller size:"
        return Advice(text, command(case, size="tiny"))
    if any(leg.outcome == UNCHECKED and leg.taps and leg.name == "authoring" for leg in legs):
        return Advice(f"change what is named above in {_file(case)}, then:", command(case))
    return Advice("see all that was not checked, and why:", command(case, "-v"))
