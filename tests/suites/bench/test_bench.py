"""Timing in processes of their own: figures, words, and what a dead process is told as."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeverify.core.errors import ArtifactError
from edgeverify.core.results import PASS, UNCHECKED
from edgeverify.suites.bench import run, tables
from edgeverify.suites.bench.run import Bench, Row, Spread, bench_file, measured
from edgeverify.suites.bench.worker import Job, Sample

JOB = Job("some.tflite", "xnnpack", 1, 2)


def sample(**changed: Any) -> Sample:
    given: dict[str, Any] = {
        "prefill_signature": "prefill_128",
        "prefill_tokens": 128,
        "decode_steps": 32,
        "load": (1.5, 1.0, 2.0),
        "prefill": (0.5, 0.25, 1.0),
        "decode": (2.0, 1.0, 4.0),
        "first_token": (0.5, 0.3, 1.2),
        "memory": 900_000_000,
        "memory_before": 35_000_000,
    }
    return Sample(**{**given, **changed})


def test_a_spread_is_the_median_and_the_ends() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([]) is None


def row(tmp_path: Path, found: Sample) -> Row:
    path = tmp_path / "x.tflite"
    path.write_bytes(bytes(2_500_000))
    return run._row("dynamic_int8", "xnnpack", path, found)


def test_rates_are_tokens_per_second(tmp_path: Path) -> None:
    made = row(tmp_path, sample())
    assert made.prefill == Spread(256.0, 128.0, 512.0)
    assert made.decode == Spread(16.0, 8.0, 32.0)
    assert made.first_token == Spread(0.5, 0.3, 1.2)


def test_the_table(tmp_path: Path) -> None:
    rows = (
        row(tmp_path, sample()),
        Row("dynamic_int4_block128", "xnnpack", UNCHECKED, reason="cannot be applied (128)"),
    )
    shown = tables.lines(Bench("smollm2 135m", 2, 3, rows, {}))
    assert shown[0] == "smollm2 135m · 2 threads"
    assert " ".join(shown[3].split()) == (
        "dynamic_int8 xnnpack 2.5 256 [128 512] 16 [8 32] 500 [300 1200] 1.5 [1 2] 900"
    )
    assert shown[4].split() == ["dynamic_int4_block128", "xnnpack", "unchecked"]
    assert shown[6:] == [
        "  Median [smallest largest] of 3 repeats, each on a file opened anew.",
        "  prefill_128 is timed once a repeat, then 32 decode steps after it, with the cache "
        "handed in and out as arrays.",
        "  load: opening and the first call of each signature, which is the warm-up. peak MB: of a "
        "process of its own, 35 before it opened the file.",
        "  dynamic_int4_block128: unchecked, cannot be applied (128)",
    ]


def test_a_file_without_decode_has_a_dash(tmp_path: Path) -> None:
    made = row(tmp_path, sample(decode_steps=0, decode=(), first_token=()))
    assert made.decode is None
    assert "–" in tables.lines(Bench("x", 1, 3, (made,), {}))[3]


def test_the_result_is_plain_data(tmp_path: Path) -> None:
    told = Bench("x", 1, 3, (row(tmp_path, sample()),), {}).to_dict()
    assert json.loads(json.dumps(told))["rows"][0]["prefill"] == {
        "median": 256.0,
        "low": 128.0,
        "high": 512.0,
    }
    assert told["outcome"] == PASS


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "some.tflite: the process that ran it was ended by SIGSEGV; expected a file that "
            "LiteRT runs with --kernel xnnpack; try another --kernel; if that passes, report it "
            "to LiteRT",
        ),
        (
            "raise SystemExit('out of luck')",
            "some.tflite: the process that ran it ended with status 1 (out of luck); expected a "
            "file that LiteRT runs with --kernel xnnpack; try another --kernel; if that passes, "
            "report it to LiteRT",
        ),
        (
            'print(\'chatter\'); print(\'{"error": "is odd", "where": "x"}\')',
            "x: is odd",
        ),
    ],
)
def test_how_a_worker_ended_is_told_in_one_line(
    script: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "WORKER", ("-c", script))
    with pytest.raises(ArtifactError) as error:
        measured(JOB)
    assert str(error.value) == told


def test_a_file_that_is_none_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "odd.tflite"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match=r"odd\.tflite: cannot be read as a \.tflite"):
        bench_file(path, ["xnnpack"], repeats=1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["default", "transposed"])
def test_a_real_file_is_measured(layout: str, converted: Callable[..., Any]) -> None:
    path = converted("smollm2", layout).path
    result = bench_file(path, ["xnnpack", "builtin"], threads=1, repeats=2)
    assert [row.kernel for row in result.rows] == ["xnnpack", "builtin"]
    for found in result.rows:
        assert found.sample is not None
        assert found.sample.prefill_signature == "prefill_11"  # the longer one
        assert found.sample.decode_steps == 40 - 11  # what the cache has room for
        assert len(found.sample.load) == len(found.sample.decode) == 2
        assert min(found.sample.prefill + found.sample.decode + found.sample.load) > 0
        for first, prefill in zip(found.sample.first_token, found.sample.prefill, strict=True):
            assert first > prefill
        assert found.sample.memory is not None
        assert found.sample.memory > (found.sample.memory_before or 0) > 2**20


@pytest.mark.slow
def test_masks_are_given_where_a_file_takes_them(converted: Callable[..., Any]) -> None:
    path = converted("gemma2", "default", mask_as_input=True).path
    assert bench_file(path, ["xnnpack"], threads=1, repeats=1).rows[0].prefill is not None
