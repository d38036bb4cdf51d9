"""Plans what one machine does of a matrix: its shard, each case's key and memory."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import edgeverify_models as models
from edgeverify.core.case import KV_LAYOUTS
from edgeverify.core.errors import UsageError
from edgeverify.core.loading import is_file, split
from edgeverify.core.store import entries
from edgeverify.litert.recipes import FLOAT32, RECIPES
from edgeverify.suites.nightly.matrix import NightlyCase

PACKAGE = Path(__file__).parents[2]
KEY_VERSION = 1
GIB = 2**30
# Peak of a check, measured: 1.2 GiB for a tiny model, 4.4 GiB for 135M parameters, 17.8 for 1.1B.
BASE_MEMORY = 2 * GIB
BYTES_A_PARAMETER = 18.0  # 4.5 times float32
# Bits of a weight in a file: bfloat16 and float16 are usual; a GGUF's name gives its own number.
USUAL_BITS, GGUF_BITS = 16, 8


def share(cases: Sequence[NightlyCase], shard: tuple[int, int] | None) -> list[NightlyCase]:
    """Returns the cases of shard k of n: the k-th of n equal parts of the list.

    Neighbours share a conversion, so a shard repeats at most the conversion that its start cuts.

    Raises:
        UsageError: there are fewer cases than shards.
    """
    if shard is None:
        return list(cases)
    k, n = shard
    if n > len(cases):
        raise UsageError(
            f"{len(cases)} cases cannot be split in {n}",
            where=f"--shard {k}/{n}",
            expected=f"at most {len(cases)} shards",
        )
    return [case for number, case in enumerate(cases) if number * n // len(cases) == k - 1]


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Parses ``2/4`` as (2, 4).

    Raises:
        UsageError: the text does not have this form, or k is outside 1 to n.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"got {text!r}", where="--shard", expected="k/n with k from 1 to n")
    return int(found[1]), int(found[2])


def chosen(cases: Sequence[NightlyCase], patterns: Sequence[str]) -> list[NightlyCase]:
    """Returns the cases whose ids match one of the patterns; all cases without patterns.

    Raises:
        UsageError: a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(case.id, pattern) for case in cases):
            raise UsageError(
                f"{pattern!r} fits no case",
                where="--case",
                expected=f"a pattern of ids such as {cases[0].id!r}",
                fix="see --dry-run for all of them",
            )
    return [c for c in cases if not patterns or any(fnmatchcase(c.id, p) for p in patterns)]


def with_goldens(cases: Sequence[NightlyCase], folder: Path | None) -> list[NightlyCase]:
    """Adds goldens to the cases in float32 and the default layout.

    A golden contains every recipe's facts and has its own steps, so only one case of each model is
    compared with it.
    """
    if folder is None:
        return list(cases)
    held = str(folder.resolve())
    fit = [case.recipe == FLOAT32 and case.layout == KV_LAYOUTS[0] for case in cases]
    return [replace(c, golden=held) if fits else c for c, fits in zip(cases, fit, strict=True)]


def code_digest() -> str:
    """Returns the digest of the code and data of edgeverify and the ports."""
    total = hashlib.sha256()
    for root in (PACKAGE, Path(str(models.__file__)).parent):
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".json", ".txt") and path.is_file():
                total.update(f"{root.name}/{path.relative_to(root)}".encode())
                total.update(path.read_bytes())
    return total.hexdigest()


def key_of(case: NightlyCase, code: str) -> str:
    """Digests what a case's result depends on: the case, its files, the code, the versions."""
    return entries.digest(
        "nightly",
        KEY_VERSION,
        [case.id, case.model, case.selectors()],
        code,
        entries.versions(),
        [platform.python_version(), platform.machine()],
        _files_of(case),
    )


def need_of(case: NightlyCase) -> int:
    """Returns the bytes of memory that a case may take: from the matrix, or by its parameters.

    The number of parameters comes from the size in a registered model's name ("1.1b"), or from the
    files of a checkpoint.
    """
    if case.memory is not None:
        return case.memory
    return BASE_MEMORY + int(BYTES_A_PARAMETER * _parameters(case))


def _parameters(case: NightlyCase) -> float:
    if case.checkpoint is not None and Path(case.checkpoint).exists():
        return sum(8 * size / _bits(name) for name, size, _ in _stated(Path(case.checkpoint)))
    text = case.size or case.checkpoint or ""
    found = re.search(r"(\d+(?:\.\d+)?)([mb])\b", text.lower())
    return float(found[1]) * {"m": 1e6, "b": 1e9}[found[2]] if found else 0.0


def _bits(name: str) -> float:
    """Bits of one parameter in a file; infinite if the file has no parameters."""
    if name.endswith((".safetensors", ".bin", ".pt", ".pth")):
        return USUAL_BITS
    if not name.endswith(".gguf"):
        return float("inf")
    found = re.search(r"(?:[fq]|iq)(\d+)", Path(name).stem.lower().replace("gguf", ""))
    return float(found[1]) if found else GGUF_BITS


def _files_of(case: NightlyCase) -> list[Any]:
    facts: list[Any] = []
    if case.checkpoint is not None and Path(case.checkpoint).exists():
        facts += _stated(Path(case.checkpoint))
    if case.golden is not None:
        facts.append([(p.name, entries.file_digest(p)) for p in _files(Path(case.golden))])
    if ":" in case.model:
        place, _ = split(case.model)
        facts += _code_beside(place)
    if case.recipe not in RECIPES:
        place = case.recipe if case.recipe.endswith(".json") else split(case.recipe)[0]
        facts += _code_beside(place)
    return facts


def _stated(path: Path) -> list[tuple[str, int, int]]:
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in _files(path)]


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _code_beside(place: str) -> list[tuple[str, str]]:
    """Returns the contents of a user's own file and of the Python files beside it."""
    file = Path(place)
    if not is_file(place) and not place.endswith(".json"):
        spec = importlib.util.find_spec(place.partition(".")[0])
        file = Path(spec.origin) if spec and spec.origin else file
    found = {file, *file.parent.glob("*.py")} if file.is_file() else set()
    return [(path.name, entries.file_digest(path)) for path in sorted(found)]
