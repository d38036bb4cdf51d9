"""No checkpoint, however odd its config, tokenizer or prompt, ends a check with a fault of ours."""

from __future__ import annotations

import random

import pytest

from benchmarks import odd_checkpoints
from benchmarks.odd_checkpoints import (
    EXIT_INTERNAL,
    HANG,
    changed_json,
    ended,
    odd_value,
    trial,
)
from edgeverify.cli.main import main


@pytest.mark.parametrize("seed", range(1000, 1024))
def test_an_odd_checkpoint_is_judged_or_refused_in_a_line(seed: int) -> None:
    found = trial(seed)
    assert found.status not in (EXIT_INTERNAL, HANG), found
    if found.status == 2:
        assert found.told.startswith("edgeverify: error: "), found


def test_a_fault_and_a_hang_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(odd_checkpoints, "SECONDS", 1)

    def wait() -> int:
        while True:
            pass

    assert ended(wait)[0] == HANG
    assert ended(lambda: main(["no-such-verb"]))[0] == 2
    monkeypatch.setattr("edgeverify.cli.main._parser", fault)
    status, told = ended(lambda: main(["list"]))
    assert status == EXIT_INTERNAL
    assert "unexpected RuntimeError: ours" in told


def test_the_same_seed_draws_the_same() -> None:
    data = [{"a": [1, 2], "b": {"c": "x"}} for _ in range(2)]
    told = [changed_json(random.Random(7), value) for value in data]
    assert told[0] == told[1]
    assert repr(data[0]) == repr(data[1])
    assert repr(data[0]) != repr({"a": [1, 2], "b": {"c": "x"}})
    assert odd_value(random.Random(1), True) == odd_value(random.Random(1), True)
