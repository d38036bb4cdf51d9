"""What was read from a file is read again wherever it could be otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeverify_models as models
from edgeverify.audits.file_reading import FileReading
from edgeverify.audits.model import Readings
from edgeverify.core.results import (
    CONFIG,
    FAIL,
    PASS,
    SIGNATURES,
    UNCHECKED,
    WEIGHTS,
    AuditResult,
    Check,
)
from edgeverify.legs.conversion import audit_file
from edgeverify.legs.run import Run, prepare
from edgeverify.legs.selectors import Selectors
from tests import variants

READING = FileReading(
    AuditResult(SIGNATURES, (Check("KV layout", "file", PASS, "default", "default"),), ("a",)),
    "it needs a decode",
    Readings("file", {"layers": 3, "rotary base": 3700.0, "gated": "yes"}, {"scale": "none"}),
    AuditResult(CONFIG, (Check("x", "file", FAIL, "1", "2", "because"),)),
    AuditResult(WEIGHTS, (Check("y", "file", UNCHECKED, reason="lost"),), ("b", "c")),
)


class Reader:
    """Stands for an ``Auditor``: counts how often a file is read."""

    for_engine = False

    def __init__(self, reading: FileReading = READING) -> None:
        self.reading, self.reads = reading, 0
        self.found: list[FileReading] = []

    def file(self, path: Path, model: Any, state: Any, remember: Callable[..., Any]) -> None:
        self.found.append(remember(self._read))

    def _read(self) -> FileReading:
        self.reads += 1
        return self.reading


@pytest.fixture
def run(tmp_path: Path) -> Run:
    chosen = Selectors.of(decode_steps=1, cache=tmp_path / "cache")
    return prepare("tinyllama", chosen, verbose=False, progress=None)[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.tflite"
    path.write_bytes(b"a file")
    return path


def test_it_comes_back_as_it_was() -> None:
    assert FileReading.from_json(READING.to_json()) == READING


def test_values_that_text_cannot_hold_are_not_kept() -> None:
    for value in ((1, 2), np.float64(0.5), {1: 2}):
        readings = Readings("file", {"layers": value})
        assert replace(READING, readings=readings).to_json() == ""


def test_a_file_is_read_once(run: Run, file: Path) -> None:
    reader: Any = Reader()
    for _ in range(2):
        audit_file(run, reader, file)
    assert reader.reads == 1
    assert reader.found == [READING, READING]


def test_what_could_not_be_made_is_tried_again(run: Run, file: Path) -> None:
    reader: Any = Reader(replace(READING, whole=False))
    for _ in range(2):
        audit_file(run, reader, file)
    assert reader.reads == 2
    assert reader.found[1] == reader.reading


def other_bytes(run: Run, file: Path, reader: Any) -> Run:
    file.write_bytes(b"another")
    return run


def other_layout(run: Run, file: Path, reader: Any) -> Run:
    return replace(run, case=replace(run.case, kv_layout="transposed"))


def other_lengths(run: Run, file: Path, reader: Any) -> Run:
    return replace(run, case=replace(run.case, prefill_lengths=(16,)))


def other_weights(run: Run, file: Path, reader: Any) -> Run:
    return replace(run, checkpoint=replace(run.checkpoint, identity="another"))


def other_config(run: Run, file: Path, reader: Any) -> Run:
    port = variants.with_config(models.load("tinyllama"), rms_norm_eps=5.001e-3)
    return replace(run, port=port).of_case(run.case)


def other_use(run: Run, file: Path, reader: Any) -> Run:
    reader.for_engine = True
    return run


@pytest.mark.parametrize(
    "change",
    [other_bytes, other_layout, other_lengths, other_weights, other_config, other_use],
)
def test_a_change_is_read(run: Run, file: Path, change: Callable[..., None]) -> None:
    reader: Any = Reader()
    audit_file(run, reader, file)
    run = change(run, file, reader)
    audit_file(run, reader, file)
    assert reader.reads == 2
