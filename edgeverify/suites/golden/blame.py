"""Compares a run with a golden and names the part that has changed since.

The part is found by elimination, in the order in which one thing is made from another: config,
weights and inputs; reference and oracle; the re-authored model; the converted file's graph; the
quantized files; the kernels that run it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeverify.core.compare import Thresholds
from edgeverify.core.results import FAIL, PASS, GoldenChange, GoldenResult
from edgeverify.report.words import listed
from edgeverify.suites.golden.compare import ORACLE, REAUTHORED, Moved, Now, compare, limits
from edgeverify.suites.golden.file import Golden

# These facts decide in which order a float32 sum is taken, besides the libraries' versions.
PLACE = ("machine", "instruction_set", "kernel", "threads")
LISTED = 3
Ops = Mapping[str, Mapping[str, int]]


def judge(name: str, golden: Golden, now: Now, update: str) -> GoldenResult:
    """Says whether a golden still holds and, if not, which part has changed.

    Args:
        name: file name of the golden.
        golden: as it was saved.
        now: the same case today.
        update: the command that accepts the changes.
    """
    elsewhere = differences(golden.environment, now.environment, PLACE)
    allowed = limits("other" if elsewhere else "same")
    parts, lines = [], []
    for part, told in _givens(golden.facts, now.facts):
        parts.append(part)
        lines.append(told)
    found = compare(golden, now, allowed) if not parts else Moved()
    if not parts:
        for part, told in _moved(golden, now, found):
            parts.append(part)
            lines.append(told)
    changes = [change for listed in found.changes.values() for change in listed]
    if not parts and changes:  # e.g. an array that is no part of any run
        parts.append("contents")
        lines.append(_listed(changes))
    outcome = FAIL if parts else PASS
    head = _summary(golden, found, elsewhere, allowed, parts)
    versions = differences(golden.environment, now.environment)
    if outcome == FAIL:
        told = "; ".join(versions) if versions else "nothing: the code or the data has changed"
        lines.append(f"changed in the environment: {told}")
        lines.append(f"if the change is meant: {update}")
    elif versions:
        lines.append(f"although changed: {'; '.join(versions)}")
    return GoldenResult(name, outcome, tuple(parts), (head, *lines), tuple(changes))


def rewritten(name: str, golden: Golden, now: Now) -> GoldenResult:
    """The result of a golden that is rewritten: every change and its size."""
    found = compare(golden, now, Thresholds(0.0, 0.0))
    changes = [change for some in found.changes.values() for change in some]
    lines = [f"rewritten: {len(changes)} of {len(golden.arrays)} arrays are others; run again"]
    for prefix, some in found.changes.items():
        lines.append(f"{prefix.rstrip('/') or 'arrays'}: {_listed(some)}")
    before, after = golden.facts, now.facts
    for fact in [*before, *(key for key in after if key not in before)]:
        if before.get(fact) == after.get(fact):
            continue
        told = ops_changed(before.get(fact, {}), after.get(fact, {})) if fact == "ops" else ""
        lines.append(f"{fact}: {told or 'is another one'}")
    lines += differences(golden.environment, now.environment)
    return GoldenResult(name, FAIL, (), tuple(lines), tuple(changes))


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], names: Sequence[str] | None = None
) -> list[str]:
    """Lists each name whose value differs, as ``transformers 5.23.0 → 5.24.0``."""
    keys = names or [*before, *(key for key in after if key not in before)]
    return [
        f"{key} {before.get(key, 'none')} → {after.get(key, 'none')}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _summary(
    golden: Golden, found: Moved, elsewhere: list[str], allowed: Thresholds, parts: list[str]
) -> str:
    widened = f" (widened for another environment: {'; '.join(elsewhere)})" if elsewhere else ""
    if parts:
        return f"moved: {', '.join(parts)}{widened}"
    if found.bitwise:
        return f"{len(golden.arrays)} arrays, bitwise as they were{widened}"
    worst, key = found.worst
    return (
        f"{len(golden.arrays)} arrays within the floor: largest change {worst:.2g} at {key}, "
        f"allowed {allowed.rms:.3g}{widened}"
    )


def _givens(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Compares what the models are made from; where it differs, comparing numbers is pointless."""
    for part, told in (
        ("config", "the Hugging Face config is another one"),
        ("weights", "the checkpoint holds other weights"),
        ("inputs", "other tokens are run"),
    ):
        if before.get(part) != after.get(part):
            yield part, f"{part}: {told}, so nothing further was compared"


def _moved(golden: Golden, now: Now, found: Moved) -> Iterator[tuple[str, str]]:
    before, after = golden.facts, now.facts
    for prefix, part in ((ORACLE, "oracle"), (REAUTHORED, "reauthored")):
        if found.of(prefix):
            yield part, f"{part}: {_blame(part, before, after)}; {_listed(found.of(prefix))}"
    if "ops" not in before:
        if found.of(""):
            yield "reference", f"reference: {_listed(found.of(''))}"
        return
    same_model = not found.of(REAUTHORED) and before.get("code") == after.get("code")
    changed = ops_changed(before["ops"], after["ops"])
    if changed and same_model:
        yield "converter", f"converter: it made another graph: {changed}"
    elif changed:
        yield "converter", f"converter: the graph follows the re-authored model: {changed}"
    same_file = before["file"] == after["file"]
    if found.of("") and same_file:
        yield "kernels", f"kernels: the same file gives something else; {_listed(found.of(''))}"
    elif found.of("") and not changed and same_model:
        told = "the same operators, with other constants or attributes"
        yield "converter", f"converter: {told}; {_listed(found.of(''))}"
    elif found.of(""):
        yield "file", f"file: what it gives has moved with it; {_listed(found.of(''))}"
    yield from _quantizer(before, after, same_file)
    yield from _quality(before.get("quality", {}), after.get("quality", {}))


def _blame(part: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if part == "oracle":
        return "the Hugging Face model computes something else, in float64, too"
    if before.get("code") != after.get("code"):
        return "the port's config or code has changed, and what it gives with it"
    return "the port's own code is the same, but it gives something else (litert-torch, torch)"


def _quantizer(
    before: Mapping[str, Any], after: Mapping[str, Any], same_file: bool
) -> Iterator[tuple[str, str]]:
    """Compares the quantized files by recipe. They change whenever the float file changes."""
    for recipe, kept in before.get("recipes", {}).items():
        made = after.get("recipes", {}).get(recipe)
        if made is None:
            yield "quantizer", f"quantizer: there is no recipe {recipe} any more"
            continue
        if kept == made or not same_file:
            continue
        changed = ops_changed(kept.get("ops", {}), made.get("ops", {}))
        told = f"operators: {changed}" if changed else "the same operators with other contents"
        if "unchecked" in kept or "unchecked" in made:
            told = f"{kept.get('unchecked', 'it applied')} → {made.get('unchecked', 'it applies')}"
        size = f"{kept.get('bytes', 0)} → {made.get('bytes', 0)} bytes"
        yield (
            "quantizer",
            f"quantizer: {recipe} from the same float file is another file: {told}; {size}",
        )


def _quality(
    before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> Iterator[tuple[str, str]]:
    """Yields recipes whose mean KL has changed, up or down, by more than its standard error."""
    for recipe, kept in before.items():
        given = after.get(recipe)
        if given is None:
            yield "quality", f"quality: {recipe} has no figures any more"
        # NaN fails every comparison, so it counts as changed.
        elif not abs(given["mean_kl"] - kept["mean_kl"]) <= kept["se"]:
            yield (
                "quality",
                f"quality: {recipe}: mean KL {kept['mean_kl']:.3g} ± {kept['se']:.2g} → "
                f"{given['mean_kl']:.3g}, same top-1 {kept['top1']:.1%} → {given['top1']:.1%}",
            )


def ops_changed(before: Ops, after: Ops) -> str:
    """Lists operator counts as ``decode: RESHAPE 12 → 14, CAST 0 → 1``; empty if none changed."""
    told = []
    for signature in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(signature, {}), after.get(signature, {})
        names = [n for n in sorted({*old, *new}) if old.get(n, 0) != new.get(n, 0)]
        if names:
            counts = ", ".join(f"{n} {old.get(n, 0)} → {new.get(n, 0)}" for n in names)
            told.append(f"{signature}: {counts}")
    return "; ".join(told)


def _listed(changes: Sequence[GoldenChange]) -> str:
    return "; ".join(listed([f"{change.key}: {change.what}" for change in changes], LISTED))
