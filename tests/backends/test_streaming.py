"""A streamed run is the whole run, bit by bit, and holds about one module's weights."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeverify import load_port
from edgeverify.backends import reference, widened_tables
from edgeverify.backends.streaming import FusingOnDisk, forgetting, put_on_disk
from edgeverify.core.store.mapped import forget, is_mapped, map_file
from edgeverify.legs.authoring import run_reauthored
from edgeverify.legs.baselines import reference_baselines
from edgeverify.legs.run import Run, prepare
from edgeverify.legs.selectors import Selectors
from edgeverify.suites.check import verify
from tests.matrices import each_port

NAMES = ["gemma1", "gemma2", "tinyllama", "phi2", "openelm", "smollm", "smollm2"]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def authoring(name: str, cache: Path, *, streamed: bool, **chosen: Any) -> tuple[Run, dict]:
    options = Selectors.of(cache=cache, **chosen)
    run, _ = prepare(load_port(name), options, verbose=False, progress=None)
    run = replace(run, streamed=streamed)
    run, baselines = reference_baselines(run, with_file=False)
    baseline = baselines["authoring"]
    whole, isolated = run_reauthored(run, baseline.oracle)
    return run, {
        "own": baseline.own.arrays,
        "oracle": baseline.oracle.arrays,
        "floor": baseline.floor,
        "isolated floor": baseline.isolated_floor,
        "whole": whole.arrays,
        "isolated": isolated.arrays,
    }


def assert_same(left: dict, right: dict) -> None:
    for what, arrays in left.items():
        assert list(arrays) == list(right[what])
        for key, array in arrays.items():
            assert array.dtype == right[what][key].dtype
            assert np.array_equal(array, right[what][key]), f"{what} {key}"


@pytest.mark.parametrize("name", NAMES)
def test_streamed_is_whole_bit_by_bit(name: str, tmp_path: Path) -> None:
    _, whole = authoring(name, tmp_path / "whole", streamed=False)
    run, streamed = authoring(name, tmp_path / "streamed", streamed=True)
    assert_same(whole, streamed)
    assert is_mapped(*run.state().values())
    assert is_mapped(*streamed["own"].values(), *streamed["oracle"].values())
    assert is_mapped(*streamed["whole"].values(), *streamed["isolated"].values())


@pytest.mark.real
def test_streamed_is_whole_with_real_weights(tmp_path: Path, smollm2_dir: Path) -> None:
    chosen = {"checkpoint": str(smollm2_dir), "prefill": (16,), "decode_steps": 2}
    _, whole = authoring("smollm2", tmp_path, streamed=False, **chosen)
    for made in tmp_path.rglob("*.safetensors"):
        if made.parent.name != "dequantized":
            made.unlink()
    _, streamed = authoring("smollm2", tmp_path, streamed=True, **chosen)
    assert_same(whole, streamed)


def test_a_module_gives_its_pages_back(tmp_path: Path) -> None:
    file = tmp_path / "w"
    np.ones((64, 64), np.float32).tofile(file)
    layer = nn.Linear(64, 64, bias=False)
    mapped = torch.from_numpy(map_file(file).view(np.float32).reshape(64, 64))
    layer.weight = nn.Parameter(mapped, requires_grad=False)
    mapped[0, 0] = 5  # only in memory: gone when the pages are
    with forgetting(layer):
        layer(torch.zeros(1, 64))
    assert layer.weight[0, 0] == 1
    mapped[0, 0] = 5
    layer(torch.zeros(1, 64))
    assert layer.weight[0, 0] == 5, "no hook is left"


def test_fused_tensors_go_to_the_disk(tmp_path: Path) -> None:
    large, small = torch.ones(400, 400), torch.ones(4)
    with FusingOnDisk(tmp_path):
        fused, short = torch.cat([large, large]), torch.cat([small, small])
    assert is_mapped(fused)
    assert not is_mapped(short)
    assert torch.equal(fused, torch.ones(800, 400))


def test_what_a_port_has_written_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "w"
    np.ones((64, 64), np.float32).tofile(file)
    mapped = torch.from_numpy(map_file(file).view(np.float32).reshape(64, 64))
    layer = nn.Linear(64, 64, bias=False)
    layer.weight = nn.Parameter(mapped, requires_grad=False)
    mapped[0, 0] = 5
    put_on_disk(layer, tmp_path, [mapped])
    forget(layer.weight, mapped)
    assert layer.weight[0, 0] == 5
    assert mapped[0, 0] == 1


def test_oracle_of_a_head_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, whole = authoring("smollm", tmp_path, streamed=False)
    monkeypatch.setattr(widened_tables, "PIECE", 1000)
    model = reference.build(run.hf_config, run.state())
    pieces = reference.run_oracle(model, run.case)
    for key, array in whole["oracle"].items():
        assert np.allclose(pieces[key], array, rtol=1e-13, atol=1e-13), key
    head = model.get_output_embeddings()
    assert head is not None
    assert "forward" not in vars(head)
    assert head.weight.dtype == torch.float32


def test_a_budget_that_nothing_fits_is_unchecked(tmp_path: Path) -> None:
    report = verify("tinyllama", backends=("reauthored",), memory_budget="1GiB", cache=tmp_path)
    assert report.outcome == "unchecked"
    assert report.legs["authoring"].reason == (
        "needs about 1.1 GiB of memory with its weights on the disk (1.1 GiB without), and there "
        "are 1.0 GiB allowed"
    )
    assert not list(tmp_path.rglob("*.bin")), "nothing was run"


def test_a_budget_below_the_whole_model_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeverify.legs.memory_plan.WHOLE_TRACES", 10**6)
    report = verify("tinyllama", backends=("reauthored",), memory_budget="2GiB", cache=tmp_path)
    assert report.passed
    (note,) = report.legs["authoring"].notes
    assert note.startswith("weights streamed from the disk: about 1.1 GiB of 2.0 GiB allowed")
    assert report.environment["memory"] == note
    assert report.environment["peak_memory"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", each_port(["gemma2", "openelm"]))
def test_a_streamed_check_of_all_legs_says_what_the_whole_one_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 2's head holds its final softcap in the file, OpenELM's fused q, k and v are cut."""
    chosen: Any = {"recipes": ("float32", "dynamic_int8"), "decode_steps": 2}
    whole = verify(name, **chosen, cache=tmp_path / "whole")
    monkeypatch.setattr("edgeverify.legs.memory_plan.WHOLE_TRACES", 10**6)
    monkeypatch.setattr("edgeverify.backends.streaming.LARGE_BYTES", 0)
    monkeypatch.setattr("edgeverify.legs.quantization.weights.LARGE_BYTES", 0)
    monkeypatch.setattr("edgeverify.litert.flatbuffer.quantization.PIECE", 1000)
    monkeypatch.setattr("edgeverify.backends.packing.ACTIVATIONS", 0)
    size = (tmp_path / "whole").glob("converted/*.tflite")
    room = 2 * max(path.stat().st_size for path in size)
    monkeypatch.setattr("edgeverify.backends.packing.available_memory", lambda: room)
    lean = verify(name, **chosen, cache=tmp_path / "lean")
    assert lean.passed
    assert list(lean.legs) == ["authoring", "conversion", "quantization:dynamic_int8"]
    assert "streamed from the disk" in lean.environment["memory"]
    (note,) = lean.legs["conversion"].notes
    assert note.startswith("XNNPACK packs the weights in a file, once")
    for leg, result in whole.legs.items():
        assert result.taps == lean.legs[leg].taps, leg
    assert whole.audits == lean.audits


@pytest.mark.slow
def test_a_streamed_port_that_fails_is_diagnosed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = load_port("tinyllama")

    def config(hf_config: Any) -> Any:
        return right.model_config({**hf_config, "rope_theta": 3800.0})

    wrong = dataclasses.replace(right, model_config=config)
    whole = verify(wrong, cache=tmp_path / "whole")
    monkeypatch.setattr("edgeverify.legs.memory_plan.WHOLE_TRACES", 10**6)
    lean = verify(wrong, cache=tmp_path / "lean")
    assert "streamed from the disk" in lean.environment["memory"]
    assert lean.outcome == whole.outcome == "fail"
    assert lean.findings == whole.findings
    for leg, result in whole.legs.items():
        assert result.first_divergence == lean.legs[leg].first_divergence


@pytest.mark.slow
def test_a_file_that_fits_nowhere_is_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeverify.backends.packing.available_memory", lambda: 0)
    report = verify("tinyllama", recipes=("float32", "dynamic_int8"), cache=tmp_path)
    assert report.outcome == "unchecked"
    assert report.legs["authoring"].outcome == "pass"
    reason = report.legs["conversion"].reason
    assert re.search(r"XNNPACK packs its weights, about \d.* in memory or \d.* on the disk", reason)
    assert "--kernel builtin" in reason
    assert report.legs["quantization:dynamic_int8"].reason == "there is no file to run"


@pytest.mark.slow
def test_a_runtime_that_cannot_pack_on_the_disk_is_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeverify.backends.packing.ACTIVATIONS", 0)
    verify("tinyllama", backends=("reauthored", "tflite"), cache=tmp_path)
    (file,) = tmp_path.glob("converted/*.tflite")
    room = file.stat().st_size
    monkeypatch.setattr("edgeverify.backends.packing.available_memory", lambda: room)
    report = verify("tinyllama", runtimes=("compiled_model", "tf_lite"), cache=tmp_path)
    assert report.legs["conversion"].outcome == "pass"
    assert report.legs["runtime:compiled_model"].outcome == "pass"
    refused = report.legs["runtime:tf_lite"]
    assert refused.outcome == "unchecked"
    assert "XNNPACK packs its weights once for each signature" in refused.reason
