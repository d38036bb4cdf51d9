"""Files that are broken in one way after a right conversion: the invariants see it from outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgeverify.core.results import FAIL, PASS
from edgeverify.legs.conversion import converted
from edgeverify.legs.run import Run
from edgeverify.suites.invariants import subjects
from tests.suites.invariants.conftest import Examine

pytestmark = pytest.mark.slow
Edit = Callable[[schema.ModelT], None]


def constants(model: schema.ModelT, shape: tuple[int, ...]) -> list[schema.BufferT]:
    """The float constants of a shape in the first subgraph."""
    tensors = model.subgraphs[0].tensors
    found = [model.buffers[t.buffer] for t in tensors if tuple(t.shape) == shape]
    return [buffer for buffer in found if buffer.data is not None]


def values(buffer: schema.BufferT) -> np.ndarray:
    return np.frombuffer(bytes(buffer.data), np.float32).copy()


def store(buffer: schema.BufferT, array: np.ndarray) -> None:
    buffer.data = np.frombuffer(array.astype(np.float32).tobytes(), np.uint8)


def local_mask_one_wider(model: schema.ModelT) -> None:
    """Gemma 2's masks are constants (S, 1, 1, S); the local one is open in fewer places."""
    masks = constants(model, (96, 1, 1, 96))
    local = min(masks, key=lambda buffer: (values(buffer) == 0).sum())
    table = values(local).reshape(96, 96)
    rows = np.arange(13, 96)
    assert (table[rows, rows - 13] < 0).all()
    assert (table[rows, rows - 12] == 0).all()
    table[rows, rows - 13] = 0
    store(local, table)


def future_row_seen(model: schema.ModelT) -> None:
    """Every query sees one row too many, at the other end."""
    for mask in constants(model, (96, 1, 1, 96)):
        table = values(mask).reshape(96, 96)
        rows = np.arange(95)
        table[rows, rows + 1] = 0
        store(mask, table)


def a_row_fully_masked(model: schema.ModelT) -> None:
    """Position 7 sees nothing, by the converter's own large negative number."""
    for mask in constants(model, (96, 1, 1, 96)):
        table = values(mask).reshape(96, 96)
        table[7] = table.min()
        store(mask, table)


def k_and_v_swapped_at_16(model: schema.ModelT) -> None:
    """Block 1's outputs are exchanged in one signature."""
    (signature,) = [s for s in model.signatureDefs if s.signatureKey == b"prefill_16"]
    outputs = {output.name: output for output in signature.outputs}
    k, v = outputs[b"kv_cache_k_1"], outputs[b"kv_cache_v_1"]
    k.tensorIndex, v.tensorIndex = v.tensorIndex, k.tensorIndex


def rope_in_half_precision(model: schema.ModelT) -> None:
    """The frequencies, constants of half a head's width, are rounded to bfloat16."""
    found = 0
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is None or tensor.type != schema.TensorType.FLOAT32 or len(data) != 4 * 20:
            continue
        array = values(model.buffers[tensor.buffer])
        if array.max() == 1 and (np.diff(array) < 0).all():
            bits = array.view(np.uint32) & 0xFFFF0000
            store(model.buffers[tensor.buffer], bits.view(np.float32))
            found += 1
    assert found


# edit → model, the invariant that must not hold, what is said, one that holds all the same
EDITS: dict[str, tuple[Edit, str, str, str, str]] = {
    "window": (
        local_mask_one_wider,
        "gemma2",
        "mask.window",
        "13 positions back, and must not (its window is 13)",
        "cache.split",
    ),
    "future": (future_row_seen, "gemma2", "cache.unwritten", "changed", "cache.own_rows"),
    "masked": (
        a_row_fully_masked,
        "gemma2",
        "mask.open",
        "in unwritten rows",
        "cache.own_rows",
    ),
    "swapped": (
        k_and_v_swapped_at_16,
        "tinyllama",
        "cache.signatures",
        "kv.1.k differs",
        "mask.open",
    ),
    "rope": (rope_in_half_precision, "tinyllama", "rope.keys", "kv.0.k", "cache.split"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_broken_file_breaks_its_invariant(
    edit: str, under_examination: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, name, invariant, told, unharmed = EDITS[edit]
    right = converted

    def broken(run: Run) -> Path:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(right(run).read_bytes()))
        change(model)
        builder = flatbuffers.Builder(2**20)
        builder.Finish(model.Pack(builder), b"TFL3")
        target = tmp_path / "broken.tflite"
        target.write_bytes(bytes(builder.Output()))
        return target

    monkeypatch.setattr(subjects, "converted", broken)
    examination = under_examination(name, token_seed=1)  # an examination of its own
    result = examination.examine(invariant, "tflite-xnnpack")
    assert result.outcome == FAIL
    assert told in result.reason
    assert examination.examine(unharmed, "tflite-builtin").outcome == PASS
