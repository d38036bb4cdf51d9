"""A diagnosis ends in time, says that it was stopped, and names the same cause on fewer rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgeverify.core.case import Case, plan_steps
from edgeverify.core.progress import Progress
from edgeverify.core.results import Finding
from edgeverify.core.trace import Trace
from edgeverify.diagnose import diagnosis
from edgeverify.diagnose.attention import Attention
from edgeverify.diagnose.attention_changes import AttentionOf
from edgeverify.diagnose.clock import ALWAYS, Clock
from edgeverify.diagnose.scene import Inputs, Seen
from edgeverify.legs import authoring
from edgeverify.report.answer import answer_of
from edgeverify.report.answer_text import answer_lines
from edgeverify.suites.check import verify
from edgeverify_models.port import Port
from tests.diagnose.faulty import attending, masked
from tests.variants import with_hf

ALONE = ("reference", "reauthored")


def causes(port: Port, **asked: Any) -> list[tuple[str, tuple[str, ...]]]:
    report = verify(port, backends=ALONE, **asked)
    found = [finding for finding in report.findings if finding.id == "authoring.cause"]
    return [(finding.cause, finding.changes) for finding in found]


def scores_scaled(q: Any, k: Any, v: Any, kwargs: Any) -> Any:
    return q, k, v, {**kwargs, "scale": 0.3}


def sees_next(mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    keys = torch.arange(mask.shape[-1])
    return torch.where(keys[None] <= positions[:, None] + 1, 0.0, float("-inf"))[None, None]


@pytest.mark.parametrize(
    ("port", "kind"),
    [
        (attending("gemma1", scores_scaled), "attention.scale"),
        (masked("tinyllama", sees_next), "mask"),
    ],
    ids=["scale", "mask"],
)
def test_few_rows_name_the_cause_that_all_rows_name(
    monkeypatch: pytest.MonkeyPatch, port: Port, kind: str
) -> None:
    whole = causes(port)
    monkeypatch.setattr(diagnosis, "MOST_ROWS", 12)
    assert [found for found, _ in whole] == [kind]
    assert [found for found, _ in causes(port)] == [kind]


def test_what_fits_the_few_rows_alone_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six of seven rows have one window, the seventh has another."""

    def odd(mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        keys = torch.arange(mask.shape[-1])
        hidden = (keys[None] <= positions[:, None] - 20) & (positions % 7 != 3)[:, None]
        further = (keys[None] <= positions[:, None] - 30) & (positions % 7 == 3)[:, None]
        return mask.masked_fill(hidden | further, float("-inf"))

    def of_one_kind(seen: Seen, most: int) -> Seen:
        return seen.only(seen.positions % 7 != 3)

    port = masked("tinyllama", odd)
    monkeypatch.setattr(Seen, "sampled", of_one_kind)
    assert not [kind for kind, _ in causes(port) if kind == "attention.window"]


def test_a_sample_has_rows_that_differ_and_rows_that_agree() -> None:
    rows = 1000
    truth = torch.ones(rows, 4, dtype=torch.float64)
    port = truth.clone()
    port[900:] *= 1.1
    positions, odd = np.arange(rows), np.zeros(rows, bool)
    seen = Seen("x", torch.arange(rows), positions, port, truth, np.full(rows, 1e-7), odd, odd)
    few = seen.sampled(100)
    assert len(few.rows) == 100
    assert {0, 899, 900, 999} <= set(few.positions.tolist())
    assert (few.positions >= 900).sum() == 75
    assert seen.sampled(1000) is seen
    port[:] = truth * 1.1
    assert (seen.sampled(100).positions[[0, -1]] == [0, 999]).all()


class Heard(Progress):
    """Keeps what is said, and when."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_stopped_search_says_so_and_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authoring.Clock, "of_check", lambda seconds: Clock(0.0))
    heard = Heard()
    port = attending("gemma1", scores_scaled)
    report = verify(port, backends=ALONE, progress=heard)
    assert report.outcome == "fail"
    (finding,) = [f for f in report.findings if f.id == "authoring.unexplained"]
    assert isinstance(finding, Finding)
    assert finding.stopped == 0.0
    assert "stopped after 0 s, before all were tried" in finding.message
    assert "the search stopped after 0 s" in " ".join(answer_lines(answer_of(report), 200))
    (said,) = heard.said
    assert said.startswith("FAIL  authoring: ")
    assert "now looking for the cause" in said


class Once(Clock):
    """Its time is up once so many have asked."""

    def __init__(self, asked: int) -> None:
        super().__init__(30.0)
        self.left = asked

    def is_up(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("asked", [5, 10**9])
def test_only_a_search_that_was_broken_off_is_told_as_stopped(
    monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    def late(mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        keys = torch.arange(mask.shape[-1])[None]
        return mask.masked_fill((positions >= 40)[:, None] & (keys % 5 == 2), float("-inf"))

    clock = Once(asked)
    monkeypatch.setattr(authoring.Clock, "of_check", lambda seconds: clock)
    report = verify(masked("tinyllama", late), backends=ALONE)
    (finding,) = [f for f in report.findings if f.id == "authoring.unexplained"]
    broken_off = asked == 5
    assert finding.stopped == (30.0 if broken_off else None)
    assert ("stopped after" in finding.message) is broken_off
    assert finding.tried == 5 if broken_off else finding.tried > 100


@pytest.mark.parametrize("flattened", ["heads", "elements", "rows"])
def test_some_rows_of_attention_are_those_of_all_rows(flattened: str) -> None:
    oracle, rng = Trace(), np.random.default_rng(0)
    steps = plan_steps(range(40), (16, 32), (1, 2))
    for step in steps:
        for tap, heads in (("q", 4), ("k", 2), ("v", 2)):
            shape = (1, len(step.tokens), heads, 8)
            oracle.add(step.name, f"blocks.0.attn.{tap}", rng.normal(size=shape))
    case = Case("m", "tiny", "default", (16, 32), 64, steps)
    scene: Any = SimpleNamespace(case=case, oracle=oracle)
    of = AttentionOf(scene, 0)
    weight = torch.from_numpy(rng.normal(size=(32, 32)))
    rows = torch.tensor([0, 3, 17, 39, 41])
    for spec in (
        Attention(weight, None, 0.3, flattened=flattened),
        Attention(weight, None, 0.3, flattened=flattened, window=5, written=1),
        Attention(weight, None, 0.3, flattened=flattened, sees="chunk"),
    ):
        whole = of.compute(spec, Inputs(oracle, case))
        some = of.compute(spec, Inputs(oracle, case, wanted=rows))
        torch.testing.assert_close(some[rows], whole[rows], rtol=1e-12, atol=1e-12)


def test_a_long_check_gives_the_search_twice_its_time() -> None:
    assert Clock.of_check(1.0).seconds == ALWAYS
    assert Clock.of_check(100.0).seconds == 200.0
    assert not Clock().is_up()


@pytest.mark.slow
def test_a_fault_beyond_row_2048_is_diagnosed_in_time() -> None:
    """2,211 tokens and a fault that no known one explains: every repair is tried, or said not."""

    def late(mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        keys = torch.arange(mask.shape[-1])[None]
        return mask.masked_fill((positions >= 2048)[:, None] & (keys < 64), float("-inf"))

    port = with_hf(masked("tinyllama", late), max_position_embeddings=4096)
    report = verify(port, backends=ALONE, prefill=(512, 1024), decode_steps=2)
    assert report.outcome == "fail"
    seconds = report.timings["diagnose"]
    budget = Clock.of_check(sum(report.timings.values()) - seconds).seconds
    assert seconds < 1.5 * budget
    (finding,) = [f for f in report.findings if f.id == "authoring.unexplained"]
    assert finding.taps == ("blocks.0.attn.out", "blocks.1.attn.out", "blocks.2.attn.out")
    assert "only from position 2048 on" in finding.shape
