"""What a run tells of its stages."""

from __future__ import annotations

import pytest

from edgeverify import load_port
from edgeverify.legs.run import prepare
from edgeverify.legs.selectors import Selectors


def test_stages_that_raise_the_peak_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = prepare(load_port("tinyllama"), Selectors.of(), verbose=False, progress=None)
    peaks = iter([100, 300, 300, 300, 300, 500, None, None])
    monkeypatch.setattr("edgeverify.legs.run.peak_memory", lambda: next(peaks))
    for name in ("load", "run", "load", "elsewhere"):
        with run.timed(name):
            pass
    assert run.log.peaks == {"load": 500}
    assert list(run.log.timings) == ["load", "run", "elsewhere"]
