"""Where XNNPACK's packed weights go, by what they take and what there is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeverify.backends import compiled_model, packing, runtimes, tflite
from edgeverify.backends.interpreter import choose_opener
from edgeverify.core.errors import ArtifactError, NoRoomError
from edgeverify.core.units import shown

GIB = 2**30


@pytest.fixture
def made(converted: Callable[..., Any]) -> Any:
    return converted("gemma2", "transposed", mask_as_input=True)


def free(monkeypatch: pytest.MonkeyPatch, memory: int | None) -> None:
    monkeypatch.setattr(packing, "available_memory", lambda: memory)


@pytest.mark.slow
def test_packed_on_disk_gives_the_same_bits(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tflite.run(made.path, made.case)
    opened: list[bool] = []
    own = compiled_model.open_file

    def spied(path: Path, *, packed_on_disk: bool, **rest: Any) -> Any:
        opened.append(packed_on_disk)
        return own(path, packed_on_disk=packed_on_disk, **rest)

    monkeypatch.setattr(compiled_model, "open_file", spied)
    monkeypatch.setattr(packing, "ACTIVATIONS", 0)
    free(monkeypatch, made.path.stat().st_size)
    beside = sorted(os.listdir(made.path.parent))
    opener, told = choose_opener(made.path, "xnnpack")
    assert told.startswith("XNNPACK packs the weights in a file, once")
    lean = tflite.run(made.path, made.case, setup=tflite.Setup(opener=opener))
    assert opened == [True]
    assert list(lean) == list(whole)
    assert [key for key in whole if whole[key].tobytes() != lean[key].tobytes()] == []
    runtimes.run(made.path, made.case, "compiled_model")
    assert opened == [True, True]
    assert sorted(os.listdir(made.path.parent)) == beside, "what was packed has no name"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "phi2", "openelm"])
def test_blocks_and_taps_of_a_file_that_is_packed_on_disk(
    family: str, converted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One norm feeds both halves of Phi-2's blocks: a tensor that is two taps."""
    made = converted(family, "default")
    oracle, _ = tflite.run_file(made.path, made.case, setup=tflite.Setup(cache=tmp_path))
    _, blocks = tflite.run_file(made.path, made.case, oracle, setup=tflite.Setup(cache=tmp_path))
    every = tflite.run_every_tap(made.path, made.case, oracle, setup=tflite.Setup(cache=tmp_path))
    monkeypatch.setattr(packing, "ACTIVATIONS", 0)
    free(monkeypatch, made.path.stat().st_size)
    opened: list[Path] = []
    own = compiled_model.open_file

    def spied(path: Path, **options: Any) -> Any:
        opened.append(path)
        return own(path, **options)

    monkeypatch.setattr(compiled_model, "open_file", spied)
    whole, lean = tflite.run_file(made.path, made.case, oracle, setup=tflite.Setup(cache=tmp_path))
    assert len(opened) == len(set(opened)) == 2, "packed once untouched, once for both copies"
    fed = tflite.run_every_tap(made.path, made.case, oracle, setup=tflite.Setup(cache=tmp_path))
    assert blocks is not None
    assert lean is not None
    for one, other in ((oracle, whole), (blocks, lean), (every, fed)):
        assert list(one) == list(other)
        assert [key for key in one if one[key].tobytes() != other[key].tobytes()] == []
    assert not whole.unavailable
    assert oracle.provenance["packing"] == ""
    assert whole.provenance["packing"].startswith("XNNPACK packs the weights in a file")


@pytest.mark.slow
def test_a_budget_decides_where_weights_are_packed(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, signatures = made.path.stat().st_size, len(made.case.signatures)
    free(monkeypatch, 100 * GIB)
    monkeypatch.setattr(packing, "resident_memory", lambda: GIB)
    roomy = packing.choose_packing(made.path, GIB + size * (signatures + 1))
    assert roomy.in_memory
    assert not replace(roomy, room=size * (signatures + 1) - 1).in_memory, "the file is mapped, too"
    told = shown(roomy.memory + roomy.file)
    assert str(roomy) == f"XNNPACK packs the weights in memory: {told} of {told}"
    tight = packing.choose_packing(made.path, 2 * GIB - 1)
    assert tight.in_memory, "all signatures of a small file are below 1 GiB"
    monkeypatch.setattr(packing, "ACTIVATIONS", 0)
    lean = packing.choose_packing(made.path, GIB + size)
    assert not lean.in_memory
    assert "in a file, once: in memory, once for each signature, they would take" in str(lean)


@pytest.mark.slow
def test_weights_that_fit_nowhere_are_refused(
    made: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    free(monkeypatch, made.path.stat().st_size)
    tflite.run(made.path, replace(made.case, kernel="builtin"))
    capfd.readouterr()
    with pytest.raises(NoRoomError, match=r"in memory or .* on the disk.*or take --kernel builtin"):
        tflite.run_file(made.path, made.case)
    with pytest.raises(NoRoomError, match=r"once for each signature.*or --kernel builtin"):
        tflite.run(made.path, made.case)
    with pytest.raises(NoRoomError, match=r"once for each signature.*or --kernel builtin"):
        runtimes.run(made.path, made.case, "tf_lite")
    assert capfd.readouterr() == ("", "")


def test_how_much_there_is_may_be_unknown() -> None:
    unknown = packing.Packing(memory=3, disk=1, file=1, largest=1, room=None, disk_room=0)
    assert unknown.in_memory
    assert unknown.fits
    assert replace(unknown, room=4).in_memory
    full = replace(unknown, room=3)
    assert not full.in_memory
    assert not full.fits, "no disk, either"


@pytest.mark.slow
def test_a_large_file_of_our_own_is_packed_on_the_disk_without_need(
    made: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is faster. Beside somebody else's file nothing is written."""
    plain, _ = tflite.run_file(made.path, made.case, setup=tflite.Setup(cache=tmp_path))
    assert plain.provenance["runtime"] == "Interpreter"
    monkeypatch.setattr(packing, "LARGE", made.path.stat().st_size)
    free(monkeypatch, 100 * GIB)
    assert packing.choose_packing(made.path).in_memory
    large, _ = tflite.run_file(made.path, made.case, setup=tflite.Setup(cache=tmp_path))
    assert large.provenance["runtime"] == "CompiledModel"
    assert large.provenance["packing"] == "", "the memory was not short"
    assert [key for key in plain if plain[key].tobytes() != large[key].tobytes()] == []
    monkeypatch.setattr(packing, "LARGE", made.path.stat().st_size + 1)
    assert packing.choose_packing(made.path, own=True).in_memory


@pytest.mark.slow
def test_what_compiled_model_refuses_without_need_is_left_to_the_interpreter(
    made: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(path: Path, **_: Any) -> Any:
        raise ArtifactError("no", where=path)

    monkeypatch.setattr(packing, "LARGE", 0)
    monkeypatch.setattr(packing, "ACTIVATIONS", 0)
    monkeypatch.setattr(compiled_model, "open_file", refuse)
    oracle, _ = tflite.run_file(made.path, made.case, setup=tflite.Setup(cache=tmp_path))
    assert oracle.provenance["runtime"] == "Interpreter"
    free(monkeypatch, made.path.stat().st_size)
    with pytest.raises(ArtifactError, match="no"):
        tflite.run_file(made.path, made.case, setup=tflite.Setup(cache=tmp_path))


def test_a_disk_that_is_full_is_no_better_place() -> None:
    roomy = packing.Packing(
        memory=3, disk=2, file=1, largest=1, room=2**40, disk_room=2, prefer_disk=True
    )
    assert not roomy.in_memory
    assert replace(roomy, disk_room=1).in_memory
