"""Reads the matrix file: which models, sizes, checkpoints, recipes, layouts, runtimes to check.

It is TOML with ``[defaults]``, ``[[include]]`` (a product of lists) and ``[[exclude]]`` (cells to
leave out of the product, and why). A cell of the product is one ``edgeverify check``; the runtimes
of a cell are legs of that check.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeverify.core.case import KV_LAYOUTS
from edgeverify.core.choices import one_of
from edgeverify.core.errors import EdgeVerifyError, UsageError
from edgeverify.core.units import bytes_of
from edgeverify.legs.ports import catalogue, check_name
from edgeverify.legs.selectors import RUNTIMES, Selectors
from edgeverify.litert.recipes import RECIPES, expand, label
from edgeverify.suites.nightly.tables import AXES, OPTIONS, SHARED, checked, known, tables_of

DEFAULT = Path(__file__).with_name("default.toml")
TIME_LIMIT = 3600.0  # seconds; a converted 1.1B model with all recipes takes 10 minutes


@dataclass(frozen=True)
class NightlyCase:
    """One check of the matrix.

    Attributes:
        id: stable, and fit for a file name: ``gemma2.tiny.transposed.dynamic_int8``.
        model: as ``edgeverify check`` takes it.
        size: of the model; None where a checkpoint determines it.
        checkpoint: a path or hub id; None means seeded weights.
        layout: of the KV cache.
        recipe: one of ``edgeverify.litert.recipes.FORMS``.
        runtimes: the runtimes besides the interpreter.
        options: further selectors.
        memory: bytes that the case may take; None unless the matrix gives it.
        time_limit: seconds after which the case is ended.
        golden: a folder of goldens that the case is also compared with.
    """

    id: str
    model: str
    size: str | None = None
    checkpoint: str | None = None
    layout: str = "default"
    recipe: str = "float32"
    runtimes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    memory: int | None = None
    time_limit: float = TIME_LIMIT
    golden: str | None = None

    @property
    def group(self) -> tuple[Any, ...]:
        """Identifies the cases that quantize the same converted file."""
        options = sorted((name, str(value)) for name, value in self.options.items())
        return (self.model, self.size, self.checkpoint, self.layout, *options)

    def selectors(self) -> dict[str, Any]:
        """Returns the selectors as ``Selectors.of`` takes them; JSON values."""
        return {
            "size": self.size,
            "checkpoint": self.checkpoint,
            "recipes": [self.recipe],
            "runtimes": list(self.runtimes),
            "kv_layout": self.layout,
            **self.options,
        }


@dataclass(frozen=True)
class Excluded:
    """A cell that is not checked, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Matrix:
    """Every case in order, and the cells that were left out."""

    cases: tuple[NightlyCase, ...]
    excluded: tuple[Excluded, ...] = ()


def load_matrix(path: Path | None = None) -> Matrix:
    """Reads a matrix file.

    Args:
        path: a TOML file; None means the shipped matrix, which has every port's ``tiny`` with
            every recipe, in both layouts and in the runtimes that need no tokenizer.

    Raises:
        UsageError: it cannot be read, or has values that no run could take.
    """
    path = path or DEFAULT
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", where=f"--matrix {path}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"is no TOML ({error})", where=f"--matrix {path}", fix="see docs/nightly.md"
        ) from error
    return of_tables(found, path)


def of_tables(found: Mapping[str, Any], path: Path) -> Matrix:
    """Builds the matrix from a file's tables; errors and relative paths refer to ``path``."""
    where = f"--matrix {path}"
    known(found, ("schema", "defaults", "include", "exclude"), where)
    if found.get("schema") != 1:
        raise UsageError(f"has schema {found.get('schema')!r}", where=where, expected="schema = 1")
    defaults = checked(found.get("defaults", {}), (*AXES[1:], *OPTIONS), f"{where} [defaults]")
    cells: dict[str, NightlyCase] = {}
    for number, table in enumerate(tables_of(found, "include", where), start=1):
        at = f"{where} [[include]] {number}"
        table = checked(table, (*AXES, *OPTIONS), at)
        # A table with checkpoints does not use the default sizes.
        other = {"checkpoints": "sizes", "sizes": "checkpoints"}
        hidden = {other[axis] for axis in other if axis in table}
        taken = {name: value for name, value in defaults.items() if name not in hidden}
        with _told(at):
            found_here = list(_cells({**taken, **table}, path))
        for case in found_here:
            if case.id in cells:
                raise UsageError(
                    f"{case.id!r} is there twice",
                    where=at,
                    expected="every case once",
                    fix="take it out of one table, or give one of them a name",
                )
            cells[case.id] = case
    if not cells:
        raise UsageError("has no case", where=where, expected="an [[include]] with models")
    excluded: dict[str, Excluded] = {}
    for number, table in enumerate(tables_of(found, "exclude", where), start=1):
        at = f"{where} [[exclude]] {number}"
        table = checked(table, (*AXES, "reason"), at)
        if not isinstance(table.get("reason"), str) or not table["reason"].strip():
            raise UsageError("has no reason", where=at, expected='reason = "…"')
        taken_out = [case for case in cells.values() if _matches(case, table)]
        if not taken_out:
            raise UsageError(
                "fits no case", where=at, expected="a case that is included", fix="take it out"
            )
        excluded |= {case.id: Excluded(case.id, table["reason"]) for case in taken_out}
    cases = tuple(case for name, case in cells.items() if name not in excluded)
    if not cases:
        raise UsageError("excludes every case", where=where, expected="a case that is left")
    return Matrix(cases, tuple(excluded.values()))


def _cells(table: Mapping[str, Any], path: Path) -> Iterator[NightlyCase]:
    if "models" not in table:
        raise UsageError("has no models", expected='models = ["gemma2", …] or ["all"]')
    models = table["models"]
    models = list(catalogue()) if models == ["all"] else [_beside(m, path) for m in models]
    if "checkpoints" in table and "sizes" in table:
        raise UsageError("has both sizes and checkpoints", expected="one of them")
    named: list[str] = [_beside(text, path) for text in table.get("checkpoints", [])]
    checkpoints: list[str | None] = [*named] or [None]
    layouts = [one_of("layouts", x, KV_LAYOUTS) for x in table.get("layouts", ["default"])]
    recipes = expand(
        [_beside(text, path) for text in table.get("recipes", ["float32"])],
        where="recipes",
    )
    runtimes = [one_of("runtimes", x, RUNTIMES) for x in table.get("runtimes", [])]
    memory = table.get("memory")
    for model in models:
        sizes = table.get("sizes") or [None if checkpoints[0] else _default_size(model)]
        axes = itertools.product(sizes, checkpoints, layouts, recipes)
        for size, checkpoint, layout, recipe in axes:
            place = checkpoint and _short(checkpoint)
            told = [_short(model), table.get("name"), size, place, layout, label(recipe)]
            parts = [part for part in told if part]
            case = NightlyCase(
                id=".".join(re.sub(r"[^A-Za-z0-9_-]+", "-", part) for part in parts),
                model=model,
                size=size,
                checkpoint=checkpoint,
                layout=layout,
                recipe=recipe,
                runtimes=tuple(runtimes),
                options={name: table[name] for name in SHARED if name in table},
                memory=None if memory is None else bytes_of("memory", memory),
                time_limit=float(table.get("time_limit", TIME_LIMIT)),
            )
            _check(case)
            yield case


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Adds the table's name to errors about its values."""
    try:
        yield
    except EdgeVerifyError as error:
        at = where if error.where is None else f"{where}: {error.where}"
        raise UsageError(error.what, where=at, expected=error.expected, fix=error.fix) from error


def _check(case: NightlyCase) -> None:
    """Refuses selectors that no run could take.

    Raises:
        EdgeVerifyError: the error that ``edgeverify check`` would raise.
    """
    check_name(case.model, case.size)
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in case.selectors().items()
    }
    try:
        Selectors.of(**given)
    except TypeError as error:
        raise UsageError(f"{case.options} cannot be selectors ({error})") from error


def _default_size(model: str) -> str | None:
    entry = catalogue().get(model)
    return None if entry is None else str(entry.default_size)


def _short(text: str) -> str:
    """Returns the last part of a path or hub id, by which a person recognises it."""
    return Path(text).name if "/" in text else text


def _beside(text: str, path: Path) -> str:
    """Makes a path relative to the matrix file absolute; returns other texts unchanged."""
    place = text.rpartition(":")[0] if ".py:" in text else text
    if text in RECIPES or not (path.parent / place).exists():
        return text
    if "/" not in place and "." not in place:
        return text  # a registered name, although a folder has the same name
    return str((path.parent / place).resolve()) + text[len(place) :]


def _matches(case: NightlyCase, rule: Mapping[str, Any]) -> bool:
    facts = {
        "models": (case.model, _short(case.model)),
        "sizes": (case.size,),
        "checkpoints": (case.checkpoint, _short(case.checkpoint or "")),
        "layouts": (case.layout,),
        "recipes": (case.recipe, label(case.recipe)),
    }
    return all(any(fact in rule[axis] for fact in facts[axis]) for axis in AXES if axis in rule)
