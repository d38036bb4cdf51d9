"""Gates: bounds on a file's figures, written as text in an option or a TOML file.

The point estimate decides, because a release must have an answer. Where the bound lies inside the
figure's 95 % interval, the row says so; a longer text would then narrow the interval.
"""

from __future__ import annotations

import math
import operator
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeverify.core.choices import did_you_mean
from edgeverify.core.errors import UsageError
from edgeverify.litert.recipes import RECIPES
from edgeverify.suites.quality.statistics import NAMES, Estimate

SIZE, SPEED = "size_mb", "tokens_per_second"
FIGURES = (*NAMES, SIZE, SPEED)
OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
EXPECTED = f"conditions like mean_kl<0.05,top1>0.95 on {', '.join(FIGURES)}"
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True)
class Condition:
    """A bound on one figure."""

    figure: str
    operator: str
    bound: float

    def __str__(self) -> str:
        return f"{self.figure} {self.operator} {self.bound:g}"


@dataclass(frozen=True)
class Judged:
    """A condition and what was measured.

    Attributes:
        condition: the requested one.
        value: the point estimate.
        holds: whether the value meets the condition; NaN never does.
        uncertain: whether the bound lies inside the 95 % interval.
    """

    condition: Condition
    value: float
    holds: bool
    uncertain: bool

    def __str__(self) -> str:
        unsure = " (the bound is inside the 95 % interval)" if self.uncertain else ""
        word = "holds" if self.holds else "does not hold"
        return f"{self.condition} {word}: {self.value:.4g}{unsure}"

    def to_dict(self) -> dict[str, object]:
        return {
            "condition": str(self.condition),
            "value": self.value,
            "holds": self.holds,
            "uncertain": self.uncertain,
        }


@dataclass(frozen=True)
class Gates:
    """The conditions of each recipe.

    Attributes:
        default: for recipes that have none of their own.
        own: recipe's name → conditions.
        source: where they come from, as the report shows it.
    """

    default: tuple[Condition, ...] = ()
    own: Mapping[str, tuple[Condition, ...]] = field(default_factory=dict)
    source: str = ""

    def of(self, recipe: str) -> tuple[Condition, ...]:
        return self.own.get(recipe, self.default)


def parse(text: str, *, where: str = "--gate") -> tuple[Condition, ...]:
    """Parses conditions such as ``mean_kl<0.05,top1>=0.95``.

    Raises:
        UsageError: the text does not have this form, or names an unknown figure.
    """
    return tuple(_condition(part, where) for part in text.split(","))


def _condition(text: str, where: str) -> Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UsageError(f"cannot read {text.strip()!r}", where=where, expected=EXPECTED)
    name, comparison, number = match.groups()
    if name not in FIGURES:
        raise UsageError(
            f"there is no figure {name!r}",
            where=where,
            expected=f"one of {', '.join(FIGURES)}",
            fix=did_you_mean(name, FIGURES),
        )
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise UsageError(f"{number!r} is no number", where=where, expected=EXPECTED)
    return Condition(name, comparison, bound)


def judge(conditions: Sequence[Condition], figures: Mapping[str, Estimate]) -> tuple[Judged, ...]:
    """Compares each condition with the figures; the point estimate decides."""
    judged = []
    for condition in conditions:
        found = figures[condition.figure]
        unsure = found.low is not None and found.high is not None
        unsure = unsure and (found.low or 0.0) <= condition.bound <= (found.high or 0.0)
        holds = OPERATORS[condition.operator](found.value, condition.bound)
        judged.append(Judged(condition, found.value, holds, unsure))
    return tuple(judged)


def load_gates(path: Path, labels: Sequence[str]) -> Gates:
    """Reads gates from TOML: ``gate = "…"`` is for all recipes, or for one inside ``[recipe]``.

    Args:
        path: the file.
        labels: names of the recipes that are run. A section must be named after one of these or of
            the named recipes; any other is refused, because its gate would never be applied.

    Raises:
        UsageError: the file cannot be read or does not have this form.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot be read ({reason})", where=f"--gate-file {path}", expected="a TOML file"
        ) from error
    own = {}
    for name, section in found.items():
        if name == "gate":
            continue
        if not isinstance(section, dict) or section.keys() != {"gate"}:
            raise UsageError(
                f"cannot read {name!r}",
                where=path,
                expected=f'gate = "…" for all recipes, or [{name}] with gate = "…" for one',
            )
        if name not in (*labels, *RECIPES):
            raise UsageError(
                f"there is no recipe {name!r}",
                where=path,
                expected=f"sections named {', '.join(dict.fromkeys((*RECIPES, *labels)))}",
                fix=did_you_mean(name, (*RECIPES, *labels)),
            )
        own[name] = _text(section["gate"], f"{path} [{name}]")
    default = _text(found["gate"], str(path)) if "gate" in found else ()
    return Gates(default, own, str(path))


def _text(value: object, where: str) -> tuple[Condition, ...]:
    if not isinstance(value, str):
        raise UsageError(f"got {value!r}", where=where, expected=f'gate = "…" with {EXPECTED}')
    return parse(value, where=where)


def beside(model: str) -> Path | None:
    """Finds the gates beside a user's own port: ``my_port.py:PORT`` → ``my_port.gates.toml``.

    Args:
        model: as on the command line.

    Returns:
        The file; None if MODEL does not name a file or there are no gates beside it.
    """
    place, _, _ = model.rpartition(":")
    if not place.endswith(".py"):
        return None
    path = Path(place).with_suffix(".gates.toml")
    return path if path.is_file() else None
