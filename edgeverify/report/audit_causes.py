"""The causes that audits name: equal findings of several places, or of several tensors, are one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from edgeverify.core.results import BUNDLE, FAIL, SIGNATURES, Report
from edgeverify.report.cause import CONFIG, FIELDS, MISPLACED, OTHER, WEIGHTS, Cause, any_layer

if TYPE_CHECKING:
    from edgeverify.core.results import AuditResult, Check

FEW_FIELDS = 3
_VALUE_AT = re.compile(r"^(\S+) at (\[[\d, ]+\])$")


def audit_causes(name: str, audit: AuditResult, report: Report) -> list[Cause]:
    """The causes that one audit names; what differs alike is one."""
    failed = [check for check in audit.checks if check.outcome == FAIL]
    own = f"audit.{name}"
    charged = next((f.leg for f in report.findings if f.id == own), "authoring")
    if name == CONFIG:
        return _of_config(failed, charged)
    fields, rest = _of_tensors(failed, charged, name)
    return fields + _of_rest(rest, charged, name)


def _of_config(failed: Sequence[Check], leg: str) -> list[Cause]:
    """Fields that are wrong in the same way, in whichever places, are one."""
    groups: dict[tuple[str, str, str, str], list[Check]] = {}
    for check in failed:
        found, right = told_apart(check.found, check.expected)
        groups.setdefault((_family(check.item), found, right, check.reason), []).append(check)
    return [_field(key, group, leg) for key, group in groups.items()]


def _field(key: tuple[str, str, str, str], group: Sequence[Check], leg: str) -> Cause:
    family, found, right, reason = key
    label, kinds = FIELDS.get(family, (group[0].item, ()))
    items = list(dict.fromkeys(check.item for check in group))
    of = ""
    if len(items) == 1:
        label = items[0] if label in items[0] else label
    else:
        of = f" ({len(items)} kinds)"
        if len(items) <= FEW_FIELDS:
            of = f" ({', '.join(_without(family, item) for item in items)})"
    places, blocks = _places(group)
    within = f" in block{'s' if len(blocks) > 1 else ''} {_list(blocks)}" if blocks else ""
    says = f"{label}{within} is {found or 'missing'}, should be {right or 'absent'}{of}"
    name = family if len(items) > 1 else items[0]
    return Cause(
        text=f"{says} ({reason})" if reason else says,
        kind=CONFIG,
        leg=leg,
        seen=(f"config audit ({', '.join(places)})" if places else "config audit",),
        places=places,
        repair=f"read {name} from the HF config (here {right})" if right else f"take {name} away",
        kinds=kinds,
        blocks=frozenset(blocks),
        label=label,
        found=found if _number(found) is not None else "",
    )


def _without(family: str, item: str) -> str:
    """``final norm`` of ``final norm eps``, of the family ``norm eps``."""
    last = family.rpartition(" ")[2]
    return item.removesuffix(f" {last}")


def _family(item: str) -> str:
    """The longest end of a field's name that the table knows: ``final norm eps`` → ``norm eps``."""
    if item in FIELDS:
        return item
    ends = [end for end in FIELDS if item.endswith(f" {end}")]
    return max(ends, key=len, default=item)


def _places(group: Iterable[Check]) -> tuple[tuple[str, ...], list[int]]:
    """``file, prefill_16`` is that signature of the file; ``module, blocks 0, 2`` are blocks."""
    places: dict[str, None] = {}
    blocks: set[int] = set()
    for check in group:
        base, _, rest = check.where.partition(", ")
        if rest.startswith("block"):
            blocks |= {int(number) for number in re.findall(r"\d+", rest)}
        signature = rest if re.match(r"(prefill|decode)", rest) else ""
        places[signature.partition(",")[0] or base] = None
    return tuple(place for place in places if place), sorted(blocks)


def _of_tensors(failed: Sequence[Check], leg: str, audit: str) -> tuple[list[Cause], list[Check]]:
    """Tensors that stand where others belong, told together; and the checks that are left."""
    pairs: dict[tuple[str, str], list[Check]] = {}
    rest = []
    for check in failed:
        if "." in check.found and "." in check.expected and not _number(check.found):
            pairs.setdefault(_pair(check), []).append(check)
        else:
            rest.append(check)
    causes, done = [], set()
    for pair, group in pairs.items():
        if pair in done:
            continue
        done.add(pair)
        right, found = pair
        back = pairs.get((found, right))
        if back is not None:
            done.add((found, right))
            group = [*group, *back]
        tensors = tuple(dict.fromkeys(check.item for check in group))
        many = f" ({len(tensors)} tensors)" if len(tensors) > 1 else ""
        says = f"{found} stands where {right} belongs{many}"
        if back is not None:
            says = f"{_both(right, found)} are exchanged{many}"
        places, _ = _places(group)
        causes.append(
            Cause(
                says,
                MISPLACED,
                leg,
                _witness(audit, places),
                places,
                tensors=tensors,
                holders=_holders(group),
            )
        )
    return causes, rest


def _pair(check: Check) -> tuple[str, str]:
    """Right and found, alike for tensors that differ alike.

    Layers that differ are told (``model.layers.1.*``, ``model.layers.0.*``); a layer that is the
    same is any layer.
    """
    right = check.expected.split(", ")[-1].split(".")
    found = check.found.split(".")
    if len(right) != len(found):
        return ".".join(right), ".".join(found)
    odd = [i for i, (a, b) in enumerate(zip(right, found, strict=True)) if a != b]
    if len(odd) == 1 and right[odd[0]].isdigit():
        end = odd[0] + 1
        return ".".join([*right[:end], "*"]), ".".join([*found[:end], "*"])
    return any_layer(".".join(right)), any_layer(".".join(found))


def _both(one: str, other: str) -> str:
    """``model.layers.*.self_attn: k_proj.weight and v_proj.weight``."""
    a, b = one.split("."), other.split(".")
    same = next((i for i, pair in enumerate(zip(a, b, strict=False)) if len(set(pair)) > 1), 0)
    within = f"{'.'.join(a[:same])}: " if same else ""
    return f"{within}{'.'.join(a[same:])} and {'.'.join(b[same:])}"


def _of_rest(failed: Sequence[Check], leg: str, audit: str) -> list[Cause]:
    """Equal items of several places are one."""
    groups: dict[tuple[str, str, str, str], list[Check]] = {}
    for check in failed:
        key = check.item, check.expected, check.found, check.reason
        groups.setdefault(key, []).append(check)
    causes = []
    for (item, expected, found, reason), group in groups.items():
        places, _ = _places(group)
        values = ""
        if expected or found:
            says = _VALUE_AT.match(expected)
            at, right = (f" at {says.group(2)}", says.group(1)) if says else ("", expected)
            one, other = told_apart(found, right)
            values = f"{one or 'nothing'}{at}, should be {other or 'absent'}"
        text = f"{item}: {reason}" if reason else f"{item} is {values}"
        detail = f"found {values}" if reason and values else ""
        kind = OTHER if audit in (SIGNATURES, BUNDLE) else WEIGHTS
        causes.append(
            Cause(
                text,
                kind,
                leg,
                _witness(audit, places),
                places,
                tensors=(item,),
                detail=detail,
                holders=_holders(group),
            )
        )
    return causes


def _holders(group: Iterable[Check]) -> tuple[str, ...]:
    """Which parameters, or constants of the file, hold the tensors."""
    named = (check.where.split(", ")[1:2] for check in group)
    return tuple(dict.fromkeys(name[0] for name in named if name and "." in name[0]))


def _witness(audit: str, places: Sequence[str]) -> tuple[str, ...]:
    return (f"{audit} audit ({', '.join(places)})" if places else f"{audit} audit",)


def told_apart(found: str, right: str) -> tuple[str, str]:
    """Both values as a person reads them: six digits, or as many as tell them apart.

    What is no number stays as it is.
    """
    mine, wanted = _number(found), _number(right)
    if mine is None or wanted is None:
        return _short(found, mine), _short(right, wanted)
    for digits in range(6, 18):
        told = _digits(mine, digits), _digits(wanted, digits)
        if told[0] != told[1] or mine == wanted:
            return told
    return found, right


def _short(text: str, value: float | None) -> str:
    return text if value is None else _digits(value, 6)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _digits(value: float, digits: int) -> str:
    whole = math.isfinite(value) and value == int(value) and 1e6 <= abs(value) < 1e15
    return f"{value:.0f}" if whole else f"{value:.{digits}g}"


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
