"""The leg ``runtime``: right runtimes pass on every port, a wrong one is told from a wrong file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeverify import verify
from edgeverify.backends import runtimes, tflite
from edgeverify.backends.interpreter import open_file
from edgeverify.core.judge import Baseline
from edgeverify.core.leg import RUNTIME, Leg
from edgeverify.core.results import FAIL, PASS
from edgeverify.core.trace import Trace
from edgeverify.legs.runtime.leg import RuntimeBaseline, of_interpreter, outer_keys, runtime_leg
from edgeverify.legs.selectors import Selectors
from edgeverify_models import CATALOGUE
from tests.matrices import each_port

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("layout", ["default", "transposed"])
@pytest.mark.parametrize("name", each_port(CATALOGUE))
def test_every_port_passes_on_every_interpreter(name: str, layout: str) -> None:
    report = verify(name, size="tiny", kv_layout=layout, runtimes=("compiled_model", "tf_lite"))
    compiled, tensorflow = (report.legs[f"runtime:{n}"] for n in ("compiled_model", "tf_lite"))
    assert (compiled.outcome, tensorflow.outcome) == (PASS, PASS)
    assert compiled.notes == ("bitwise what the LiteRT interpreter gives",)
    blocks = sum("prefill.0/kv." in tap.tap for tap in compiled.taps) // 2
    steps = len(report.case["steps"])
    assert len(compiled.taps) == len(tensorflow.taps) == steps * (1 + 2 * blocks)


@dataclass(frozen=True)
class Ran:
    """A tiny file with what its own leg is held against."""

    path: Path
    case: Any
    trace: Trace
    baseline: Baseline
    expected: tuple[str, ...]

    def leg(self, runtime: str, **changes: Any) -> Any:
        given = {"interpreter": self.trace, "baseline": self.baseline, **changes}
        judged = RuntimeBaseline(given["baseline"], self.expected)
        leg = Leg(RUNTIME, runtime=runtime)
        return runtime_leg(leg, self.path, self.case, given["interpreter"], judged)


@pytest.fixture(scope="module")
def ran() -> Ran:
    from edgeverify.legs.baselines import reference_baselines
    from edgeverify.legs.conversion import converted
    from edgeverify.legs.run import prepare

    chosen = Selectors.of(size="tiny")
    run, _ = prepare("tinyllama", chosen, verbose=False, progress=None)
    run, baselines = reference_baselines(run, with_file=True)
    baseline = baselines["conversion"]
    run.model()
    path = converted(run)
    trace = tflite.run(path, run.case)
    return Ran(path, run.case, trace, baseline, run.expected(baseline.oracle))


class _Late:
    """An interpreter that places the rows of one signature one too late."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter

    def get_signature_runner(self, name: str) -> Any:
        runner = self._interpreter.get_signature_runner(name)
        if name != "decode":
            return runner

        class Runner:
            get_input_details = runner.get_input_details

            def __call__(self, *, input_pos: np.ndarray, **inputs: np.ndarray) -> Any:
                return runner(input_pos=input_pos + 1, **inputs)

        return Runner()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> str:
    def opened(path: Path, **options: Any) -> _Late:
        return _Late(open_file(path, **options))

    monkeypatch.setattr(runtimes, "OPENERS", {**runtimes.OPENERS, "late": opened})
    return "late"


def test_a_wrong_runtime_fails_at_the_inner_tap_where_it_goes_wrong(ran: Ran, late: str) -> None:
    leg = ran.leg(late)
    assert leg.outcome == FAIL
    assert leg.name == "runtime:late"
    assert leg.first_divergence.tap == "decode.0/blocks.0.attn.q"
    assert {tap.outcome for tap in leg.taps if tap.tap.startswith("prefill")} == {PASS}
    assert leg.notes[-1].endswith("outputs are not bitwise the LiteRT interpreter's")


def test_a_wrong_file_is_not_charged_to_a_runtime(ran: Ran, late: str) -> None:
    """Held against another model's oracle both fail; against the interpreter, the wrong one."""
    wrong = Trace({key: array * 1.001 for key, array in ran.baseline.oracle.arrays.items()})
    foreign = Baseline(wrong, ran.baseline.floor, ran.baseline.isolated_floor, ran.trace)
    assert ran.leg("tf_lite", baseline=foreign).outcome == FAIL
    own = of_interpreter(ran.trace, foreign)
    assert ran.leg("tf_lite", baseline=own).outcome == PASS
    assert ran.leg(late, baseline=own).outcome == FAIL


def test_only_the_models_own_outputs_are_asked_for(ran: Ran) -> None:
    keys = outer_keys(ran.expected)
    assert all("logits" in key or "/kv." in key for key in keys)
    assert len(keys) == len(ran.case.steps) * 7
