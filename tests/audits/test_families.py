"""Every family's file in both layouts: all that it shows is read, and read as it was declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgeverify.audits.file_weights import audit_file
from edgeverify.audits.model import Readings
from edgeverify.audits.of_file import of_file
from edgeverify.audits.of_hf_config import declared
from edgeverify.audits.weight_map import places
from edgeverify.core.results import PASS, WEIGHTS, Check
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.litert.flatbuffer import ModelFile, locate_taps
from edgeverify.litert.flatbuffer.weights import Weights, find_weights
from edgeverify_models import load
from tests.matrices import each_port

pytestmark = pytest.mark.slow
FAMILIES = ("tinyllama", "gemma1", "gemma2", "phi2", "openelm")
LAYOUTS = ("default", "transposed")
# What a file does not show, or shows by its weights: 1 + weight is in the norms' constants.
NOT_SHOWN = {"activation", "max length", "parallel residual", "rotary scaling", "tied head"}
# The transposed layout writes its attention out; scale and cap are then among other factors.
COMPOSITE = {"attention softcap", "query scale"}


def opened(made: Any) -> tuple[ModelFile, dict[str, Weights]]:
    file = ModelFile(made.path)
    return file, {n: find_weights(file, n, locate_taps(file, n)) for n in file.signatures}


def said(made: Any) -> Readings:
    return declared(load(made.case.model).hf_configs["tiny"])


def as_file_holds_it(value: Any) -> Any:
    return float(np.float32(value)) if isinstance(value, float) else value


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", each_port(FAMILIES))
def test_all_that_a_file_shows_is_read(
    family: str, layout: str, converted: Callable[..., Any]
) -> None:
    made = converted(family, layout)
    file, found = opened(made)
    config = said(made)
    read = of_file(file, found["decode"], config.values["rotary base"])
    assert (read.where, read.unread) == ("file", {})
    left_out = NOT_SHOWN | (COMPOSITE if layout == "transposed" else set())
    if family not in ("gemma1", "gemma2"):
        left_out.add("embedding scale")  # there is none
    shown = {
        key: as_file_holds_it(value)
        for key, value in config.values.items()
        if (field := key.rpartition(".")[2]) not in left_out and not field.endswith(" factor")
    }
    values = {key: as_file_holds_it(value) for key, value in read.values.items()}
    assert values == shown


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", each_port(FAMILIES))
def test_every_constant_of_every_signature_is_told(
    family: str, layout: str, converted: Callable[..., Any]
) -> None:
    made = converted(family, layout)
    file, found = opened(made)
    state = open_checkpoint(None, load(family), size="tiny").tensors()
    config = made.model.config
    planned = places({name: tuple(t.shape) for name, t in state.items()}, config)
    for weights in found.values():
        assert set(weights.tensors) == set(planned)
        norms = {name.rpartition(".")[0] for name in planned if "norm" in name}
        assert set(weights.norms) == norms
        # What is left are the tables of masks and of frequencies.
        shapes = {weights.graph.shape(tensor) for tensor in weights.unknown}
        half = said(made).values["rotary elements"] // 2
        assert shapes == {(40, 1, 1, 40), (1, 1, half)}

    audit = audit_file(file, found, config, state, said(made))
    assert (audit.name, audit.outcome) == (WEIGHTS, PASS)
    note = dict.fromkeys(planned, "")
    if family in ("gemma1", "gemma2"):
        note |= {name: "as 1 + weight" for name in planned if "norm" in name}
    if family == "gemma2":
        note["lm_head.weight"] = "divided by the final softcap"
    expected = {
        Check(span.tensor, f"file, {name}", PASS, reason=note[name])
        for name, spans in planned.items()
        for span in spans
    }
    assert set(audit.checks) == expected
    assert len(audit.checks) == sum(len(spans) for spans in planned.values())
    # A tied head that is not divided by a cap is the table itself.
    shared = "lm_head.weight" in planned and config.lm_head_share_weight_with_embedding
    count = len(planned) - (1 if shared and family != "gemma2" else 0)
    masks = 2 if family == "gemma2" else 1
    (told,) = audit.notes
    first, *others = told.split(", ")
    assert first == f"the file's constants: {count} float32"
    assert sorted(others) == ["1 of RoPE", f"{masks} of masks"]


def test_a_prefill_without_logits_needs_less(converted: Callable[..., Any]) -> None:
    made = converted("gemma2", "default", prefill_logits=False)
    file, found = opened(made)
    state = open_checkpoint(None, load("gemma2"), size="tiny").tensors()
    audit = audit_file(file, found, made.model.config, state, said(made))
    assert audit.odd == ()
    lacking = set(found["decode"].tensors) - set(found["prefill_4"].tensors)
    assert "final_norm.weight" in lacking
    assert "transformer_blocks.2.ff.w2.weight" not in lacking
