"""Goldens on disk: written whole, read back as they were, refused when they are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from edgeverify.core.errors import GoldenError
from edgeverify.core.trace import Trace
from edgeverify.suites.golden.file import SAMPLED, Golden, condensed, digest_of, load, save, whole

AGAIN = "edgeverify golden x --update-golden"


@pytest.fixture
def kept() -> Golden:
    rng = np.random.default_rng(0)
    arrays = {f"prefill.0/{tap}": rng.normal(size=(1, 4, 8)).astype("f") for tap in ("embed", "a")}
    return Golden(arrays, {"weights": "w"}, {"torch": "2.13.0"}, AGAIN)


@pytest.fixture
def path(tmp_path: Path, kept: Golden) -> Path:
    save(kept, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def refused(path: Path) -> GoldenError:
    with pytest.raises(GoldenError) as caught:
        load(path, AGAIN)
    assert caught.value.where == str(path)
    assert AGAIN in str(caught.value)
    return caught.value


def resaved(path: Path, change: str, value: object) -> None:
    """Edits one array or one entry of the provenance, as a person would, leaving the digest."""
    trace = Trace.load(path)
    if change in trace:
        trace.arrays[change] = np.asarray(value)
    else:
        trace.provenance[change] = value
    trace.save(path)


def test_a_golden_is_read_as_it_was_written(path: Path, kept: Golden) -> None:
    found = load(path, AGAIN)
    assert digest_of(found) == digest_of(kept)
    assert list(found.arrays) == list(kept.arrays)
    assert (found.facts, found.environment, found.command) == (
        kept.facts,
        kept.environment,
        AGAIN,
    )


def test_a_number_that_was_edited_is_refused(path: Path, kept: Golden) -> None:
    edited = kept.arrays["prefill.0/a"].copy()
    edited[0, 3, 7] = np.nextafter(edited[0, 3, 7], np.float32(9))
    resaved(path, "prefill.0/a", edited)
    assert refused(path).what.startswith("is not what was written")


@pytest.mark.parametrize("change", ["facts", "environment", "command"])
def test_provenance_that_was_edited_is_refused(path: Path, change: str) -> None:
    resaved(path, change, {"weights": "other"} if change != "command" else "rm")
    assert refused(path).what.startswith("is not what was written")


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.999])
def test_a_flipped_bit_is_refused(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 4
    path.write_bytes(data)
    refused(path)


def test_a_truncated_golden_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])
    assert "cannot be read as a trace" in refused(path).what


def test_another_format_names_the_command(path: Path) -> None:
    resaved(path, "golden", 0)
    error = refused(path)
    assert error.what == "is of format 0"
    assert error.fix == f"make it anew with this version: {AGAIN}"


def test_a_plain_trace_is_no_golden(tmp_path: Path, kept: Golden) -> None:
    Trace(dict(kept.arrays)).save(tmp_path / "t.safetensors")
    assert refused(tmp_path / "t.safetensors").what == "is of format None"


def test_provenance_that_lacks_something_is_refused(path: Path) -> None:
    with safe_open(path, framework="numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        told = file.metadata()
    told["provenance"] = '{"golden": 1}'
    save_file(arrays, path, metadata=told)
    assert refused(path).what == "its provenance has no 'facts'"


def test_a_large_golden_is_neither_written_nor_read(tmp_path: Path, kept: Golden) -> None:
    large = replace(kept, arrays={"prefill.0/a": np.zeros((1, 1000, 251), np.float32)})
    with pytest.raises(GoldenError, match=r"would take 1\.00 MB; expected at most 1 MB"):
        save(large, tmp_path / "y.safetensors")
    assert not list(tmp_path.glob("*y.safetensors*"))
    (tmp_path / "z.safetensors").write_bytes(bytes(1_300_000))
    assert refused(tmp_path / "z.safetensors").what == "has 1.30 MB"


def trace_of(**taps: np.ndarray) -> Trace:
    trace = Trace()
    for step in ("prefill.0", "decode.0"):
        for tap, array in taps.items():
            trace.add(step, tap.replace("_", "."), array)
    return trace


def test_whole_keeps_the_last_cache_alone() -> None:
    array = np.ones((1, 2, 4), np.float32)
    held = whole(trace_of(embed=array, kv_0_k=array))
    assert list(held) == ["prefill.0/embed", "decode.0/embed", "decode.0/kv.0.k"]


def test_condensed_keeps_norms_samples_and_the_largest_logits() -> None:
    logits = np.random.default_rng(1).normal(size=(1, 3, 100)).astype(np.float32)
    held = condensed(trace_of(logits=logits, kv_0_k=logits))
    assert {key.partition("/")[2] for key in held} == {
        "logits:norms",
        "logits:sample",
        "logits:top",
        "logits:top-tokens",
    }
    np.testing.assert_allclose(
        held["prefill.0/logits:norms"], np.linalg.norm(logits[0], axis=1), rtol=1e-6
    )
    assert held["prefill.0/logits:sample"].shape == (3, SAMPLED)
    best = held["prefill.0/logits:top-tokens"]
    np.testing.assert_array_equal(best[:, 0], logits[0].argmax(1))
    np.testing.assert_array_equal(
        held["prefill.0/logits:top"], np.take_along_axis(logits[0], best, 1)
    )
