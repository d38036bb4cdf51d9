"""Quantized files of tiny ports, and the run that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeverify.core.leg import QUANTIZATION, Leg
from edgeverify.core.results import AuditResult
from edgeverify.litert.recipes import Recipe


@dataclass(frozen=True)
class Made:
    """A tiny port's float file and what is needed to judge quantized copies of it."""

    run: object
    path: Path
    baseline: object

    def audit(self, path: Path, recipe: Recipe) -> AuditResult:
        from edgeverify.legs.quantization.check import audit_quantized

        return audit_quantized(self.run, path, recipe)[0]  # type: ignore[arg-type]

    def leg(self, path: Path, recipe: Recipe):  # type: ignore[no-untyped-def]
        from edgeverify.legs.quantization.check import audit_quantized
        from edgeverify.legs.quantization.leg import judge_file

        weights = audit_quantized(self.run, path, recipe)[1]  # type: ignore[arg-type]
        assert weights is not None
        leg = Leg(QUANTIZATION, recipe.name)
        return judge_file(self.run, path, weights, leg, self.baseline).leg  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def made() -> Callable[[str], Made]:
    """``made("tinyllama")``; converted once, from the cache where it can be."""
    known: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in known:
            from edgeverify.legs.baselines import reference_baselines
            from edgeverify.legs.conversion import converted
            from edgeverify.legs.run import prepare
            from edgeverify.legs.selectors import Selectors

            run, _ = prepare(name, Selectors.of(), verbose=False, progress=None)
            run, baselines = reference_baselines(run, with_file=True)
            known[name] = Made(run, converted(run), baselines["conversion"])
        return known[name]

    return make
