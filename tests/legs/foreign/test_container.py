"""A .litertlm with a right graph: the untouched one passes, a wrong use of the model fails."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeverify import verify_artifact
from edgeverify.core.results import FAIL, PASS
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.hf.tokenizer import RememberedTokenizer
from edgeverify.legs.export import LITERTLM, convert_model
from edgeverify.litert.bundle import writer
from edgeverify.litert.bundle.reader import model_of
from edgeverify.litert.bundle.writer import Usage
from edgeverify_models import load
from tests.legs.runtime.engine.conftest import write_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("litert_lm_builder") is None, reason="needs the extra litert-lm"
    ),
]
FAULTS: dict[str, Callable[[Usage], Usage]] = {
    "stop tokens": lambda usage: replace(usage, stops=(*usage.stops, 40)),
    "start token": lambda usage: replace(usage, start=None),
    "max_num_tokens": lambda usage: replace(usage, rows=usage.rows + 8),
    "chat template": lambda usage: replace(
        usage, template=(usage.template or "").replace("[assistant]", "[model]")
    ),
}


def test_the_untouched_bundle_passes_and_each_fault_fails_by_its_field(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", "smollm2")
    chosen: dict[str, Any] = {"checkpoint": folder, "kv_layout": "transposed", "prefill": (8,)}
    (made,) = convert_model("smollm2", output=tmp_path / "out", format=LITERTLM, **chosen)

    def audited(path: Path) -> Any:
        report = verify_artifact(path, checkpoint=folder, decode_steps=2)
        assert report.legs["conversion"].outcome == PASS
        return report.audits["bundle"]

    assert (audited(made).outcome, audited(made).odd) == (PASS, ())
    opened = open_checkpoint(folder, load("smollm2"))
    words = RememberedTokenizer(folder, None, trust_remote_code=False, cache=tmp_path / "cache")
    rows = int(made.stem.rpartition("ekv")[2])
    usage = writer.usage_of(words, opened.hf_config, rows)
    with model_of(made) as graph:
        for item, fault in FAULTS.items():
            target = tmp_path / "wrong.litertlm"
            writer.write_litertlm(graph, writer.tokenizer_json(words), fault(usage), target)
            failed = [check for check in audited(target).checks if check.outcome == FAIL]
            assert failed, item
            assert all(check.item.startswith(item) for check in failed), failed
