"""What changed between two reports, and what of it is a regression.

Verdicts and error ratios decide, and the quality of a recipe where its intervals say so. Sizes,
times, operators and versions are told: they explain, but a busy machine changes times as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeverify.core.results import FAIL, NOT_APPLICABLE, PASS, UNCHECKED
from edgeverify.report.read import flat, ratio
from edgeverify.report.series import NIGHTLY, Entry, measured

WORSE, BETTER, CHANGED = "worse", "better", "changed"
RANKS = {PASS: 0, NOT_APPLICABLE: 0, UNCHECKED: 1, FAIL: 2}
# In the 1372 clean runs of calibration.json the worst rms ratio lies between 0.84 and
# 1.15: a rise by less may be rounding alone.
RISE = 1.5
# Chosen, not measured: times are told and decide nothing.
SLOWER = 2.0
SECONDS = 1.0


@dataclass(frozen=True)
class Change:
    """One thing that differs.

    Attributes:
        place: the case, and the leg, tap, audit or figure in it.
        what: what differs: ``outcome``, ``ratio``, ``seconds``, ….
        before, after: as text; "–" where it is not there.
        kind: ``worse`` (a regression), ``better`` or ``changed``.
    """

    place: str
    what: str
    before: str
    after: str
    kind: str = CHANGED


def difference(before: Entry, after: Entry) -> tuple[Change, ...]:
    """Everything that differs, regressions first.

    Args:
        before, after: two reports; two single ones are compared whatever they are of.
    """
    found = list(_facts("", "version", before.environment, after.environment))
    pairs: dict[str, tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]]
    if NIGHTLY in (before.kind, after.kind):
        pairs = {name: (before.cases.get(name), after.cases.get(name))
                 for name in (*before.cases, *after.cases)}  # fmt: skip
    else:
        (name, first), (other, second) = *before.cases.items(), *after.cases.items()
        pairs = {name: (first, second)}  # the two are compared, whatever their names
        if name != other:
            found.append(Change("", "subject", name, other))
    for name, (old, new) in pairs.items():
        found += _gone(name, "case", old, new) or _case(name, old or {}, new or {})
    # A version that changed for a whole run is not told of each of its cases again.
    run = {(c.what, c.before, c.after) for c in found if not c.place}
    found = [c for c in found if not c.place or (c.what, c.before, c.after) not in run]
    order = (WORSE, BETTER, CHANGED)
    return tuple(sorted(found, key=lambda change: order.index(change.kind)))


def outcome(changes: tuple[Change, ...]) -> str:
    """``fail`` with a regression among the changes, else ``pass``."""
    return FAIL if any(change.kind == WORSE for change in changes) else PASS


def _gone(place: str, what: str, old: Any, new: Any) -> list[Change]:
    """A thing of one side alone: gone is a regression; new is one where it is no pass."""
    if old is not None and new is not None:
        return []
    if new is None:
        return [Change(place, what, str(old.get("outcome", "there")), "missing", WORSE)]
    told = str(new.get("outcome", "new"))
    return [Change(place, what, "–", told, WORSE if RANKS.get(told, 0) else CHANGED)]


def _case(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    yield from _judged(name, old, new)
    for kind in ("legs", "audits"):
        before, after = flat(old.get(kind, {})), flat(new.get(kind, {}))
        yield from _named(name, kind[:-1], before, after)
    for kind, key in (("invariants", "invariant"), ("goldens", "name")):
        before, after = (
            {f"{r[key]} {r.get('implementation', '')}".strip(): r for r in side.get(kind, ())}
            for side in (old, new)
        )
        yield from _named(name, kind[:-1], before, after)
    yield from _ratios(name, old, new)
    yield from _taps(name, old, new)
    yield from _recipes(name, old, new)
    yield from _told(name, old, new)


def _judged(place: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    before, after = old.get("outcome", UNCHECKED), new.get("outcome", UNCHECKED)
    if before != after:
        rise = RANKS.get(after, 2) - RANKS.get(before, 2)
        kind = WORSE if rise > 0 else BETTER if rise < 0 else CHANGED
        yield Change(place, "outcome", before, after, kind)


def _named(
    name: str, what: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[Change]:
    for key in dict.fromkeys((*old, *new)):
        place = f"{name} {key}"
        gone = _gone(place, what, old.get(key), new.get(key))
        yield from gone or _judged(place, old[key], new[key])


def _ratios(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    before, after = measured(old), measured(new)
    for leg in before.keys() & after.keys():
        a, b = before[leg], after[leg]
        if a == b or (math.isnan(a) and math.isnan(b)):
            continue
        # NaN compares false with everything; it is never better.
        kind = CHANGED if b <= a * RISE else WORSE
        kind = BETTER if b * RISE < a else kind
        yield Change(f"{name} {leg}", "ratio over allowed", f"{a:.3g}", f"{b:.3g}", kind)


def _taps(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    before, after = flat(old.get("legs", {})), flat(new.get("legs", {}))
    for leg in before.keys() & after.keys():
        a, b = ({tap["tap"]: tap for tap in side[leg]["taps"]} for side in (before, after))
        for tap, result in a.items():
            place = f"{name} {leg} {tap}"
            yield from _gone(place, "tap", result, b.get(tap)) or _judged(place, result, b[tap])
        for tap in b.keys() - a.keys():
            yield from _gone(f"{name} {leg} {tap}", "tap", None, b[tap])


def _recipes(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Evaluations: a figure is worse where the intervals of the two do not meet."""
    before, after = ({row["recipe"]: row for row in side.get("recipes", ())} for side in (old, new))
    yield from _named(name, "recipe", before, after)
    for recipe in before.keys() & after.keys():
        a, b = ((side[recipe].get("figures") or {}) for side in (before, after))
        for figure, up_is_worse in (("mean_kl", True), ("top1", False), ("perplexity", True)):
            x, y = a.get(figure), b.get(figure)
            if not x or not y or x["value"] == y["value"]:
                continue
            yield Change(
                f"{name} {recipe}", figure, f"{x['value']:.4g}", f"{y['value']:.4g}",
                _apart(x, y, up_is_worse=up_is_worse),
            )  # fmt: skip
        sizes = ({"size_bytes": side[recipe].get("size_bytes")} for side in (before, after))
        yield from _facts(f"{name} {recipe}", "", *sizes)


def _apart(x: Mapping[str, Any], y: Mapping[str, Any], *, up_is_worse: bool) -> str:
    ends = [side.get(end) for side in (x, y) for end in ("low", "high")]
    if any(end is None for end in ends):
        return CHANGED
    if y["low"] > x["high"]:
        return WORSE if up_is_worse else BETTER
    if y["high"] < x["low"]:
        return BETTER if up_is_worse else WORSE
    return CHANGED


def _told(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    yield from _facts(name, "version", old.get("environment") or {}, new.get("environment") or {})
    before, after = flat(old.get("legs", {})), flat(new.get("legs", {}))
    for leg in before.keys() & after.keys():
        a, b = ((side[leg].get("attribution") or {}).get("kl") or {} for side in (before, after))
        for which in a.keys() & b.keys():
            x, y = ratio(a[which]), ratio(b[which])
            if x != y:
                yield Change(f"{name} {leg}", f"KL {which}", f"{x:.4g}", f"{y:.4g}")
    files, others = old.get("files") or {}, new.get("files") or {}
    for file in files.keys() & others.keys():
        place, a, b = f"{name} {file}", files[file], others[file]
        yield from _facts(place, "", {"bytes": a["bytes"]}, {"bytes": b["bytes"]})
        for signature in a["ops"].keys() | b["ops"].keys():
            counts = (side["ops"].get(signature, {}) for side in (a, b))
            yield from _facts(place, signature, *counts)
    a, b = old.get("timings") or {}, new.get("timings") or {}
    for stage in a.keys() & b.keys():
        x, y = sorted((a[stage], b[stage]))
        if y > SECONDS and y > SLOWER * x:
            yield Change(name, f"seconds of {stage}", f"{a[stage]:.1f}", f"{b[stage]:.1f}")


def _facts(
    place: str, what: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[Change]:
    for key in dict.fromkeys((*old, *new)):
        if key != "time" and old.get(key) != new.get(key):
            told = f"{what} {key}".strip()
            yield Change(place, told, str(old.get(key, "–")), str(new.get(key, "–")))
