"""Mapped arrays: what is forgotten is read again, and nothing else is touched."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeverify.core.store import mapped


def test_a_private_mapping_never_writes_to_its_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(bytes([7]) * 10000)
    array = mapped.map_file(file)
    array[0] = 1
    assert file.read_bytes()[0] == 7
    mapped.forget(array)
    assert array[0] == 7


def test_a_scratch_file_keeps_what_was_written(tmp_path: Path) -> None:
    array = mapped.scratch(10000, tmp_path / "new")
    array[:] = 3
    mapped.forget(array)
    assert (array == 3).all()
    assert list((tmp_path / "new").iterdir()) == []


def test_what_is_not_mapped_is_left_alone(tmp_path: Path) -> None:
    array, tensor = np.ones(5000), torch.ones(5000)
    mapped.forget(array, tensor, torch.ones(3, device="meta"))
    assert array.sum() == tensor.sum() == 5000
    assert not mapped.is_mapped(array)
    assert not mapped.is_mapped(tensor)


def test_a_mapping_that_is_gone_is_no_longer_known(tmp_path: Path) -> None:
    known = len(mapped._MAPPINGS)
    array = mapped.scratch(10000, tmp_path)
    view = torch.from_numpy(array)[100:200]
    assert mapped.is_mapped(view)
    del array
    gc.collect()
    assert mapped.is_mapped(view), "a tensor keeps its mapping"
    del view
    gc.collect()
    assert len(mapped._MAPPINGS) == known


def test_only_whole_pages_are_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(bytes(3 * mapped.PAGE))
    array = mapped.map_file(file)
    array[:] = 1
    mapped.forget(array[10 : 2 * mapped.PAGE - 10])
    assert array.all(), "two pages are shared with neighbours"
    mapped.forget(array[10 : 2 * mapped.PAGE])
    assert array[: mapped.PAGE].all()
    assert not array[mapped.PAGE : 2 * mapped.PAGE].any()
    assert array[2 * mapped.PAGE :].all()


def test_spilled_arrays_are_the_same(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float64).reshape(2, 3),
        "b": np.zeros((3, 0), np.float32),
        "c": np.arange(8, dtype=np.float32).reshape(2, 4)[:, ::2],
    }
    moved = mapped.spilled(arrays, tmp_path)
    assert list(moved) == list(arrays)
    for name, array in arrays.items():
        assert moved[name].dtype == array.dtype
        assert np.array_equal(moved[name], array)
    assert mapped.is_mapped(moved["a"], moved["c"])


def test_forgotten_pages_are_not_resident(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from edgeverify.core.store import mapped;"
        "from edgeverify.core.memory import peak_memory;"
        "a = mapped.map_file(pathlib.Path(sys.argv[1])); before = peak_memory();\n"
        "for i in range(0, len(a), 1 << 20): a[i:i + (1 << 20)].sum(); mapped.forget(a)\n"
        "print(peak_memory() - before)"
    )
    file = tmp_path / "a"
    file.write_bytes(bytes(64 << 20))
    done = subprocess.run(
        [sys.executable, "-c", script, file], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 16 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that refuses")
def test_a_file_larger_than_the_memory_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    array = mapped.map_file(path)
    array[-1] = 1
    assert array[-1] == 1
    mapped.forget(array)
    assert array[-1] == 0
