"""The memory budget: how it is read, and which way it chooses."""

from __future__ import annotations

import re

import pytest

from edgeverify import load_port
from edgeverify.core.case import Case, plan_steps
from edgeverify.core.errors import UsageError
from edgeverify.legs import memory_plan
from edgeverify.legs.memory_plan import GIB, Plan, plan_memory, trace_bytes
from edgeverify.legs.run import prepare
from edgeverify.legs.selectors import Selectors
from edgeverify.suites.nightly import command
from edgeverify_models.smollm import SMOLLM


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 * GIB), ("8gib", 8 * GIB), ("512 MiB", 512 * 2**20), (7, 7)]
)
def test_check_and_nightly_read_the_same_sizes(text: str | int, size: int) -> None:
    assert Selectors.of(memory_budget=text).memory_budget == size
    assert command._budget(str(text)) == size


@pytest.mark.parametrize("text", ["lots", "0", "-1GiB", "GiB", "0.0001B"])
def test_check_and_nightly_refuse_the_same_sizes(text: str) -> None:
    words = f"got {text!r}; expected a size such as 8GiB or 512MiB"
    with pytest.raises(UsageError, match=re.escape(f"memory_budget: {words}")):
        Selectors.of(memory_budget=text)
    with pytest.raises(UsageError, match=re.escape(f"--memory-budget: {words}")):
        command._budget(text)


@pytest.mark.parametrize(
    ("budget", "stream", "fits", "told"),
    [
        (None, False, True, "the model is held in memory: how much there is, is not known"),
        (9 * GIB, False, True, "the model is held in memory: about 8.0 GiB of 9.0 GiB allowed"),
        (
            7 * GIB,
            True,
            True,
            "weights streamed from the disk: about 2.0 GiB of 7.0 GiB allowed, where the whole "
            "model would take 8.0 GiB",
        ),
        (
            GIB,
            True,
            False,
            "needs about 2.0 GiB of memory with its weights on the disk (8.0 GiB without), and "
            "there are 1.0 GiB allowed",
        ),
    ],
)
def test_the_way_that_is_chosen(budget: int | None, stream: bool, fits: bool, told: str) -> None:
    plan = Plan(8 * GIB, 2 * GIB, budget, given=True)
    assert (plan.stream, plan.fits, str(plan)) == (stream, fits, told)


def test_no_more_is_planned_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = prepare(load_port("tinyllama"), Selectors.of(), verbose=False, progress=None)
    monkeypatch.setattr(memory_plan, "available_memory", lambda: 3 * GIB)
    monkeypatch.setattr(memory_plan, "resident_memory", lambda: GIB)
    assert str(plan_memory(run, 20 * GIB)).endswith("of 4.0 GiB available")
    assert str(plan_memory(run, 2 * GIB)).endswith("of 2.0 GiB allowed")
    assert str(plan_memory(run, None)).endswith("of 4.0 GiB available")
    monkeypatch.setattr(memory_plan, "available_memory", lambda: None)
    assert plan_memory(run, None).budget is None


def test_quantized_files_need_their_weights_beside_the_checkpoints() -> None:
    run, _ = prepare(
        load_port("tinyllama"), Selectors.of(size="1.1b"), verbose=False, progress=None
    )
    float32 = 4 * 1.1e9
    plain, both = (plan_memory(run, None, quantized=told).whole for told in (False, True))
    assert 1.3 * float32 < both - plain < 1.6 * float32


def test_a_trace_grows_with_the_steps_not_with_their_square() -> None:
    config = SMOLLM.model_config(SMOLLM.hf_configs["tiny"])

    def size(steps: int) -> int:
        planned = plan_steps([1] * 16, (16,), [1] * steps)
        return trace_bytes(config, Case("smollm", "tiny", "default", (16,), 1024, planned))

    assert size(401) - size(400) == size(1) - size(0)
