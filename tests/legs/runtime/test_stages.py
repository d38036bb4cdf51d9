"""Other runtimes, asked one after another: what one cannot do does not keep the next from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeverify.core.errors import ArtifactError, UsageError
from edgeverify.core.judge import Baseline
from edgeverify.core.leg import CONVERSION, QUANTIZATION, Leg
from edgeverify.core.results import FAIL, PASS, UNCHECKED, LegResult
from edgeverify.core.trace import Trace
from edgeverify.legs.runtime import stages
from edgeverify.legs.runtime.stages import FileRun, run_runtimes
from edgeverify.litert.bundle.writer import require_engine

NOTHING = Baseline(Trace(), {}, {}, Trace())


def asked(monkeypatch: pytest.MonkeyPatch, own: Leg, *, refusal: str = "") -> Any:
    def run(_: Any, __: Any, leg: Leg) -> LegResult:
        if leg.runtime == "compiled_model":
            raise ArtifactError("CompiledModel cannot open it", where="x.tflite")
        return LegResult(leg, PASS, {})

    def ask(_: Any, __: Any, ___: Any, leg: Leg) -> Any:
        return LegResult(leg, PASS, {}), ("a finding",)

    monkeypatch.setattr(stages, "_runtime_leg", run)
    monkeypatch.setattr(stages, "_engine_leg", ask)
    names = ("compiled_model", "litert_lm", "tf_lite")
    run_: Any = None
    file = FileRun(Path("x.tflite"), LegResult(own, PASS, {}), Trace(), NOTHING)
    return run_runtimes(run_, names, file, object(), refusal)


def test_a_runtime_that_cannot_take_the_file_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    legs, findings = asked(monkeypatch, Leg(CONVERSION))
    assert {name: leg.outcome for name, leg in legs.items()} == {
        "runtime:compiled_model": FAIL,
        "runtime:litert_lm": PASS,
        "runtime:tf_lite": PASS,
    }
    assert legs["runtime:compiled_model"].reason == "CompiledModel cannot open it"
    assert findings == ("a finding",)


def test_the_engine_is_not_asked_for_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    legs, findings = asked(
        monkeypatch, Leg(QUANTIZATION, "dynamic_int8"), refusal="it has no decode"
    )
    leg = legs["runtime:litert_lm:dynamic_int8"]
    assert (leg.outcome, leg.reason) == (UNCHECKED, "not asked: it has no decode")
    assert leg.threshold == {"rms": 1.5, "row": 4.0}
    assert findings == ()


def test_the_engine_needs_a_tokenizer_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    require_engine(("compiled_model", "tf_lite"), None)
    monkeypatch.setattr(stages.writer, "require", lambda module, what: None)
    with pytest.raises(UsageError, match="holds the model's tokenizer"):
        require_engine(("litert_lm",), None)
