"""The cache: content-addressed, atomic, shared by processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgeverify.core.case import Step
from edgeverify.core.errors import ArtifactError
from edgeverify.core.store import entries, leases
from edgeverify.core.store.entries import cached, digest, file_digest

SLOW_MAKER = """
import sys, time
from pathlib import Path
from edgeverify.core.store.entries import cached

root, seconds = Path(sys.argv[1]), float(sys.argv[2])

def make(path):
    with path.open("wb") as file:
        file.write(b"half")
        file.flush()
        print("begun", flush=True)
        time.sleep(seconds)
        file.write(b" and half")

print(cached("kind", "key", ".bin", make, root=root).read_bytes().decode())
"""


def start(root: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW_MAKER, str(root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def files(root: Path) -> list[str]:
    """All but the notes of who uses what (see ``tests/test_cache_use.py``)."""
    found = (p.relative_to(root) for p in root.rglob("*") if p.is_file())
    return sorted(str(path) for path in found if path.parts[0] != leases.FOLDER)


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("whole")

    first = cached("kind", "key", ".txt", make, root=tmp_path)
    assert cached("kind", "key", ".txt", make, root=tmp_path) == first
    assert first == tmp_path / "kind" / "key.txt"
    assert first.read_text() == "whole"
    assert len(made) == 1
    assert made[0].suffix == ".txt"
    assert files(tmp_path) == ["kind/key.txt"]


def test_a_failed_entry_leaves_nothing(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        path.write_text("half")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        cached("kind", "key", ".txt", make, root=tmp_path)
    assert list((tmp_path / "kind").iterdir()) == []


def test_an_entry_that_was_not_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"key\.txt: nothing was written"):
        cached("kind", "key", ".txt", lambda path: None, root=tmp_path)


def test_a_killed_process_leaves_no_entry_and_the_next_one_clears_up(tmp_path: Path) -> None:
    process = start(tmp_path, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "kind" / "key.bin").exists()
    assert any(".making/" in name for name in files(tmp_path))
    # Another entry of the same kind clears up, too.
    cached("kind", "other", ".bin", lambda p: p.write_bytes(b"x") and None, root=tmp_path)
    assert files(tmp_path) == ["kind/other.bin"]
    entry = cached("kind", "key", ".bin", lambda p: p.write_bytes(b"y") and None, root=tmp_path)
    assert entry.read_bytes() == b"y"


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    first = start(tmp_path, 1.5)
    assert first.stdout is not None
    assert first.stdout.readline() == "begun\n"
    second = start(tmp_path, 0)
    # A third one, busy with another entry, leaves the first one's half-made file alone.
    cached("kind", "other", ".bin", lambda p: p.write_bytes(b"x") and None, root=tmp_path)
    assert second.communicate(timeout=30)[0] == "half and half\n"
    assert first.communicate(timeout=30)[0] == "half and half\n"
    assert files(tmp_path) == ["kind/key.bin", "kind/other.bin"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ArtifactError("conversion failed (No space left on device)"),
    ],
    ids=["OSError", "native", "wrapped"],
)
def test_a_full_disk_is_told_and_leaves_whole_files_only(tmp_path: Path, error: Exception) -> None:
    cached("kind", "whole", ".bin", lambda p: p.write_bytes(b"x") and None, root=tmp_path)

    def make(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    with pytest.raises(ArtifactError) as caught:
        cached("kind", "key", ".bin", make, root=tmp_path)
    assert caught.value.what == "the disk is full"
    assert "set EDGEVERIFY_CACHE" in str(caught.value)
    assert files(tmp_path) == ["kind/whole.bin"]


def test_a_device_that_is_really_full(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def make(path: Path) -> None:
        path.symlink_to("/dev/full")
        path.write_bytes(b"x" * 100_000)

    with pytest.raises(ArtifactError, match="the disk is full"):
        cached("kind", "key", ".bin", make, root=tmp_path)
    assert files(tmp_path) == []


def test_a_digest_is_of_values(tmp_path: Path) -> None:
    assert digest("a", 1, (2, 3)) == digest("a", 1, [2, 3])
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    different = [
        digest("a", "b"),
        digest("ab"),
        digest(["a", "b"]),
        digest(b"ab"),
        digest(1),
        digest("1"),
        digest(1.0),
        digest(True),
        digest(None),
        digest(np.zeros(2, np.float32)),
        digest(np.zeros(2, np.float64)),
        digest(np.zeros((2, 1), np.float32)),
        digest(Step("decode.0", "decode", 1, 0, (1,))),
        digest(Step("decode.0", "decode", 1, 0, (2,))),
    ]
    assert len(set(different)) == len(different)
    with pytest.raises(TypeError, match="function has no canonical form"):
        digest(lambda: None)


def test_a_large_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "REMEMBERED_BYTES", 4)
    hashed: list[Path] = []
    original = entries._hash_file
    monkeypatch.setattr(entries, "_hash_file", lambda p: hashed.append(p) or original(p))
    path, root = tmp_path / "weights", tmp_path / "cache"
    path.write_bytes(b"12345678")
    first = file_digest(path, root=root)
    assert file_digest(path, root=root) == first
    assert len(hashed) == 1
    time.sleep(0.02)
    path.write_bytes(b"12345679")  # of the same size
    assert file_digest(path, root=root) != first
    assert len(hashed) == 2


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot be read .*; expected a readable file"):
        file_digest(tmp_path / "missing")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVERIFY_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert entries.cache_root() == Path("/a")
    monkeypatch.delenv("EDGEVERIFY_CACHE")
    assert entries.cache_root() == Path("/b/edgeverify")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert entries.cache_root() == Path.home() / ".cache" / "edgeverify"


def test_versions_import_nothing_heavy() -> None:
    code = (
        "import sys; from edgeverify.core.store.entries import versions; v = versions(); "
        "assert v['numpy'] and v['torch'] and v['ai-edge-litert'], v; "
        "assert not {'torch', 'tensorflow', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ArtifactError, match="cannot be written") as caught:
        cached("kind", "key", ".txt", lambda path: None, root=tmp_path)
    assert caught.value.where == str(tmp_path / "kind")


def test_a_cache_below_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"cannot be written \(Not a directory\)"):
        cached("kind", "key", ".txt", lambda path: None, root=tmp_path / "file" / "cache")


def test_what_a_killed_process_left_of_its_working_folder_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from edgeverify.core.store.entries import working_folder\n"
        "with working_folder(pathlib.Path(sys.argv[1])) as made:\n"
        "    (made / 'copy').write_bytes(b'x' * 100)\n"
        "    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.glob(".*.making/copy"))) == 1
    with entries.working_folder(tmp_path) as made:
        others = [path for path in tmp_path.glob(".*.making") if path != made]
        assert others == []
        with entries.working_folder(tmp_path) as second:
            assert made.exists(), "a folder that is in use is left alone"
            assert second != made
    assert list(tmp_path.iterdir()) == []
