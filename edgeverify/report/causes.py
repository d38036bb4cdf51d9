"""Named causes: what the diagnosis, the operators and the audits say, equal things merged.

Nothing is judged here. A cause that two of them name is one cause, with both as its witnesses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgeverify.report.model import FAIL, Finding, Report
from edgeverify.report.places import blocks_of, compact

if TYPE_CHECKING:
    from edgeverify.audits.model import AuditResult, Check

CONFIG, WEIGHTS, CODE, OPERATOR, OTHER = "config", "weights", "code", "operator", "other"
PORT_PLACES = ("ModelConfig", "module")
# Field of the config audit, or the end of one → what a reader knows it as, and the kinds of cause
# that are the same thing in the words of the diagnosis.
FIELDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "norm eps": ("norm eps", ("norm.eps",)),
    "norm factor": ("norm factor", ("norm.offset",)),
    "norm": ("norm", ("norm.kind", "norm.missing", "norm.place")),
    "rotary base": ("rotary base", ("rope.base",)),
    "rotary elements": ("rotary elements", ("rope.share",)),
    "rotary scaling": ("rotary scaling", ("rope.positions",)),
    "query scale": ("softmax scale (query scale)", ("attention.scale",)),
    "attention softcap": ("attention softcap", ("attention.softcap",)),
    "window": ("window", ("attention.window",)),
    "heads": ("heads", ("attention.heads", "attention.groups")),
    "activation": ("activation", ("ff.activation",)),
    "gated": ("gated", ("ff.gate",)),
    "embedding scale": ("embedding scale", ("embedding.scale",)),
    "final softcap": ("final softcap", ("head.softcap",)),
    "tied head": ("tied head", ("head.weight",)),
    "bias": ("bias", ("bias",)),
    "parallel residual": ("parallel residual", ("residual",)),
}
# Kinds of cause that are a tensor with other values.
OF_TENSORS = ("weight", "bias", "norm.weight", "norm.bias", "head.weight", "embedding.table")
FEW_FIELDS = 3
_LAYER = re.compile(r"\.(\d+)\.")
_VALUE_AT = re.compile(r"^(\S+) at (\[[\d, ]+\])$")


@dataclass(frozen=True)
class Cause:
    """One named cause.

    Attributes:
        text: what was found and what is right, in one sentence.
        kind: ``CONFIG``, ``WEIGHTS``, ``CODE``, ``OPERATOR`` or ``OTHER``.
        leg: whom it is charged to.
        seen: who names it, e.g. ``config audit (ModelConfig, file)``.
        places: where an audit read it: ``ModelConfig``, ``module``, ``file``, a signature.
        repair: what to do, e.g. ``set rotary base to 5300``; "" where the text says it.
        kinds: of the diagnosis.
        tensors: the tensors that are not right, HF names.
        blocks: which it holds for; empty for all, or for what is in no block.
        detail: one sentence more.
        label: of a field, its name.
        numbers: whether what was found and what is right are numbers.
        holders: parameters or constants that hold the tensors.
    """

    text: str
    kind: str
    leg: str
    seen: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    repair: str = ""
    kinds: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    blocks: frozenset[int] = frozenset()
    detail: str = ""
    label: str = ""
    numbers: bool = True
    holders: tuple[str, ...] = ()


def named_causes(report: Report) -> list[Cause]:
    """All causes that are named, the most certain first: those that several name."""
    audited = [cause for name, audit in report.audits.items()
               for cause in _of_audit(name, audit, report)]  # fmt: skip
    told = [_of_diagnosis(f) for f in report.findings if f.id == "authoring.cause"]
    merged = _agreeing(told, audited)
    merged += _of_operators([f for f in report.findings if f.operator])
    return sorted(merged, key=lambda cause: -len(cause.seen))


def _agreeing(told: Sequence[Cause], audited: Sequence[Cause]) -> list[Cause]:
    """The diagnosis' causes and the audits'; what both name is one, in the audit's words.

    Several of the diagnosis' may be one of the audit's: a layer that was loaded twice is seen at
    every tap.
    """
    left, out = list(told), []
    for cause in audited:
        same = [one for one in left if _same(one, cause)]
        left = [one for one in left if one not in same]
        if not same:
            out.append(cause)
        elif cause.kind == WEIGHTS and not set(cause.places) & set(PORT_PLACES):
            # The module holds the tensors rightly and takes one for the other.
            out.append(replace(same[0], seen=(*cause.seen, *same[0].seen)))
        else:
            taps = dict.fromkeys(witness for one in same for witness in one.seen)
            seen = ("diagnosis",) if len(taps) > 1 else tuple(taps)
            words = cause.text if cause.numbers else _in_words(cause, same[0])
            blocks = cause.blocks or same[0].blocks
            out.append(replace(cause, text=words, seen=(*cause.seen, *seen), blocks=blocks))
    return out + left


def _in_words(audited: Cause, told: Cause) -> str:
    """What is no number is told by the diagnosis: *gelu* is *exact GELU* there."""
    if audited.kind != CONFIG:
        return audited.text
    return told.text if audited.label in told.text else f"{audited.label}: {told.text}"


def _same(told: Cause, audited: Cause) -> bool:
    if audited.kind == CONFIG:
        return bool(set(told.kinds) & set(audited.kinds))
    if audited.kind != WEIGHTS or audited.leg != told.leg:
        return False
    if set(told.kinds) & set(OF_TENSORS):
        said = told.text + told.detail
        return any(name in said or _any_layer(name) in said for name in audited.tensors)
    # What only the file shows of a port is which of its tensors the port takes for which.
    inner = {int(n) for name in audited.tensors for n in _LAYER.findall(name)}
    return not set(audited.places) & set(PORT_PLACES) and bool(inner & told.blocks)


def _of_diagnosis(finding: Finding) -> Cause:
    first, *others = finding.changes or (finding.message,)
    what, arrow, right = first.partition(" → ")
    where = compact(finding.taps)
    repair = f"repair: {right}" if arrow else ""
    return Cause(
        text=f"{what}, should be: {right}" if arrow else what,
        kind=CODE,
        leg=finding.leg,
        seen=(f"diagnosis ({where})" if where else "diagnosis",),
        repair=repair,
        kinds=(finding.cause,),
        blocks=frozenset(blocks_of(finding.taps)),
        detail=f"or, as good: {' | '.join(others)}" if others else "",
    )


def _of_operators(findings: Sequence[Finding]) -> list[Cause]:
    """One cause for the same kind of operator of one module, in whichever signatures."""
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        key = finding.leg, finding.operator.partition(" ")[2], finding.module
        alike.setdefault(key, []).append(finding)
    return [
        Cause(
            text=f"{name} of {module}: right inputs, wrong output",
            kind=OPERATOR,
            leg=leg,
            seen=("operators in float64",),
            places=tuple(f"op {f.operator.partition(' ')[0]} of {f.signature}" for f in group),
        )
        for (leg, name, module), group in alike.items()
    ]


def _of_audit(name: str, audit: AuditResult, report: Report) -> list[Cause]:
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
        repair=f"set {name} to {right}" if right else f"take {name} away",
        kinds=kinds,
        blocks=frozenset(blocks),
        label=label,
        numbers=_number(found) is not None or _number(right) is not None,
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
            says = f"{right} and {found} are exchanged{many}"
        places, _ = _places(group)
        causes.append(
            Cause(
                says,
                WEIGHTS,
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
    return _any_layer(".".join(right)), _any_layer(".".join(found))


def _any_layer(name: str) -> str:
    return _LAYER.sub(".*.", name, count=1)


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
        kind = OTHER if audit == "signatures" else WEIGHTS
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
