"""Traces on disk: what comes back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from edgeverify.core import trace as module
from edgeverify.core.errors import TraceError
from edgeverify.core.trace import FORMAT, Trace


@pytest.fixture
def trace() -> Trace:
    """Its order is neither alphabetical nor by size; one array is not contiguous."""
    made = Trace(
        provenance={"backend": "reference", "decode_tokens": [1, 2]},
        unavailable={"decode.0/embed": "fused away"},
    )
    rng = np.random.default_rng(0)
    made.add("prefill.0", "logits", rng.normal(size=(1, 3, 7)).astype(np.float32))
    made.add("prefill.0", "embed", rng.normal(size=(1, 3, 4)))
    made.add("prefill.0", "kv.0.k", rng.normal(size=(1, 2, 3, 4)).transpose(0, 2, 1, 3))
    made.add("decode.0", "logits", np.zeros((1, 0, 7), np.float32))
    return made


def saved(trace: Trace, folder: Path) -> Path:
    path = folder / "sub" / "t.safetensors"
    trace.save(path)
    return path


def test_a_trace_comes_back_whole_and_in_order(trace: Trace, tmp_path: Path) -> None:
    back = Trace.load(saved(trace, tmp_path))
    assert list(back) == list(trace)
    for key in trace:
        assert back[key].dtype == trace[key].dtype
        np.testing.assert_array_equal(back[key], trace[key])
    assert back.provenance == trace.provenance
    assert back.unavailable == trace.unavailable
    assert "prefill.0/embed" in back
    assert "prefill.0/nothing" not in back


def test_a_tap_is_recorded_once_per_step(trace: Trace) -> None:
    with pytest.raises(ValueError, match=r"prefill\.0/embed was recorded twice"):
        trace.add("prefill.0", "embed", np.zeros((1, 1, 1)))


def test_the_file_tells_where_it_came_from(trace: Trace, tmp_path: Path) -> None:
    with safe_open(saved(trace, tmp_path), framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == FORMAT
    assert json.loads(metadata["provenance"]) == trace.provenance


@pytest.mark.parametrize("existing", [True, False])
def test_a_save_that_fails_leaves_what_was_there(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    path = tmp_path / "t.safetensors"
    if existing:
        Trace(provenance={"older": True}).save(path)

    def fail(arrays: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        trace.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ([path.name] if existing else [])
    if existing:
        assert Trace.load(path).provenance == {"older": True}


def refusal(path: Path) -> TraceError:
    with pytest.raises(TraceError) as error:
        Trace.load(path)
    assert error.value.where == str(path)
    assert error.value.expected
    assert error.value.fix
    return error.value


@pytest.mark.parametrize("kept", [0, 4, 40, -1, -40])
def test_a_truncated_file_is_refused(trace: Trace, tmp_path: Path, kept: int) -> None:
    path = saved(trace, tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "cannot be read as a trace" in refusal(path).what


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_text("this is no safetensors, but it is long enough to be asked for its header")
    assert "cannot be read as a trace" in refusal(path).what


def test_no_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.safetensors").what
    refusal(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"format": "edgeverify-trace-0"}])
def test_a_foreign_safetensors_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "t.safetensors"
    save_file({"a": np.zeros(3)}, path, metadata=metadata)
    error = refusal(path)
    assert error.what.startswith("format ")
    assert error.expected == FORMAT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("order", None),
        ("order", "[not json"),
        ("order", '["a", "gone"]'),
        ("order", '["a"]'),  # "b" is in the file, too
        ("provenance", "{"),
        ("unavailable", None),
        ("shared", '{"b": ["a", 1]}'),  # "b" is in the file itself
        ("shared", '{"c": 1}'),
        ("shared", "[1]"),
    ],
)
def test_damaged_metadata_is_refused(tmp_path: Path, field: str, value: str | None) -> None:
    metadata = {"format": FORMAT, "order": '["a", "b"]', "provenance": "{}", "unavailable": "{}"}
    if value is None:
        del metadata[field]
    else:
        metadata[field] = value
    path = tmp_path / "t.safetensors"
    save_file({"a": np.zeros(3), "b": np.ones(2)}, path, metadata=metadata)
    refusal(path)
