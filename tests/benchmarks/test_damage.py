"""Damage is seeded and real; whatever it does to a child, the host lives and is told."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from benchmarks.damaging.damage import KINDS, Damage, plan
from benchmarks.damaging.trial import KERNELS, RUN, VERDICT, try_files
from edgeverify.core.errors import ArtifactError
from edgeverify.litert import contained
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.litert.flatbuffer.instrument import write as rewrite
from tests.litert.flatbuffer import made


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A whole .tflite, large enough for every size of damage."""
    weight = made.tensor("w", (64, 96), made.TYPES.FLOAT32, 1)
    data = np.arange(64 * 96, dtype=np.float32).tobytes()
    return made.write(tmp_path / "small.tflite", "FULLY_CONNECTED", weight, data, (1, 96), (1, 64))


def test_every_kind_and_size_comes_in_turn() -> None:
    ways = list(plan(60))
    assert {(way.kind, way.size) for way in ways} == {
        (kind, size) for kind, (_, sizes) in KINDS.items() for size in sizes
    }
    assert len({way.seed for way in ways}) == 60


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_seeded_and_real(kind: str, small: Path) -> None:
    data = small.read_bytes()
    for size in KINDS[kind][1]:
        made_ = [Damage(kind, size, seed).apply(data) for seed in range(20)]
        assert data not in made_
        assert made_ == [Damage(kind, size, seed).apply(data) for seed in range(20)]
        assert len(set(made_)) > 1, "the seed changes nothing"
        assert all(len(d) <= len(data) for d in made_)


def test_damage_can_be_as_small_as_a_bit(small: Path) -> None:
    data = np.frombuffer(small.read_bytes(), np.uint8)
    for size in (1, 16, 256):
        changed = np.frombuffer(Damage("bits flipped", size, 3).apply(data.tobytes()), np.uint8)
        assert int(np.unpackbits(data ^ changed).sum()) == size


def test_an_undamaged_file_is_read_and_run(small: Path) -> None:
    class Harmless(Damage):
        def apply(self, data: bytes) -> bytes:
            return data

    found = list(try_files([small], [Harmless("none", 0, 0)]))
    assert [(t.task, t.outcome) for t in found] == [
        (task, VERDICT) for task in ("inspect", *KERNELS)
    ]


@pytest.mark.slow
def test_damaged_files_end_in_a_verdict_or_an_error(
    converted: Callable[..., Any], tmp_path: Path
) -> None:
    """60 of the 500 of ``benchmarks/damaged_files.py``."""
    model = converted("tinyllama", "transposed").path
    found = list(try_files([model, bundled(model, tmp_path)], list(plan(60, seed=7))))
    assert len(found) == 180
    outcomes = Counter(trial.outcome for trial in found)
    assert outcomes["hang"] == 0
    assert outcomes["error"] > 60, "the damage does no harm"
    assert outcomes["verdict"] > 20, "nothing is left to be read"
    for trial in found:
        if trial.outcome != VERDICT:
            assert "damaged.tflite" in trial.message or "damaged.litertlm" in trial.message
            assert "; expected " in trial.message


def bundled(model: Path, folder: Path) -> Path:
    builder = pytest.importorskip("litert_lm_builder", reason="needs litert-lm-builder")
    made_ = builder.LitertLmFileBuilder()
    made_.add_system_metadata(
        builder.Metadata(key="author", value="somebody", dtype=builder.DType.STRING)
    )
    made_.add_tflite_model(str(model), builder.TfLiteModelType.PREFILL_DECODE)
    target = folder / "x.litertlm"
    with target.open("wb") as file:
        made_.build(file)
    return target


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_graph_that_crashes_the_runtime_is_an_error(kernel: str, small: Path) -> None:
    """A SPLIT without its axis: XNNPACK's delegate of ai-edge-litert 2.3.0 reads a null pointer."""
    file = ModelFile(small)
    code = file.model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SPLIT
    code.version = 1
    file.model.subgraphs[0].operators[0].inputs = [0, 1]
    path = small.with_name("split.tflite")
    rewrite(file, path)
    with pytest.raises(ArtifactError, match=r"split\.tflite: .*; expected ") as caught:
        contained.call(RUN, path, kernel=kernel)
    if isinstance(caught.value, contained.EndedError):
        assert (caught.value.how, caught.value.status) == ("crash", signal.SIGSEGV)
