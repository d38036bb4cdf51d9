"""The cache looked after: who uses what, what is removed first, and what is damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgeverify.cli.main import main
from edgeverify.core.errors import ArtifactError, UsageError
from edgeverify.core.store import leases, upkeep
from edgeverify.core.store.entries import cached
from edgeverify.suites.cache import verify
from tests.litert.flatbuffer import made

# Takes entries from the cache and lives until it is told to end.
USER = """
import sys
from pathlib import Path
from edgeverify.core.store.entries import cached

def make(path):
    path.write_bytes(b"x" * 1000)

for name in sys.argv[2:]:
    cached("kind", name, ".bin", make, root=Path(sys.argv[1]))
print("uses", flush=True)
sys.stdin.read()
"""
# Takes many entries, which were made long ago, and reads each once it has its path.
CHURN = """
import sys
from pathlib import Path
from edgeverify.core.store.entries import cached

def make(path):
    path.write_bytes(b"whole")

print("begins", flush=True)
sys.stdin.readline()
for name in range(600):
    assert cached("kind", str(name), ".bin", make, root=Path(sys.argv[1])).read_bytes() == b"whole"
"""


def use(root: Path, *names: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(root), *names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "uses\n"
    return process


def used(root: Path, *names: str) -> None:
    process = use(root, *names)
    process.communicate("")
    assert process.returncode == 0


def at(root: Path, name: str, ago: float) -> None:
    """Moves an entry's last use into the past."""
    then = time.time() - ago
    entry = root / "kind" / f"{name}.bin"
    os.utime(leases.note_of(root, entry), (then, then))


def names(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "kind").glob("[!.]*"))


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """Entries a, b, c, d of 1000 bytes, used 4, 3, 2 and 1 days ago."""
    used(tmp_path, *"abcd")
    for days, name in enumerate("dcba", start=1):
        at(tmp_path, name, days * 86400.0)
    return tmp_path


def test_the_least_recently_used_go_first(four: Path) -> None:
    result = upkeep.prune(four, max_size=2500)
    assert [entry.path.stem for entry in result.removed] == ["a", "b"]
    assert (result.spared, result.left) == ((), 2000)
    assert names(four) == ["c", "d"]
    notes = four / leases.FOLDER / "notes" / "kind"
    assert sorted(path.name for path in notes.iterdir()) == ["c.bin", "d.bin"]


def test_a_use_is_noted(four: Path) -> None:
    used(four, "a")
    upkeep.prune(four, max_size=2500)
    assert names(four) == ["a", "d"]


def test_what_was_not_used_for_long_goes_whatever_the_size(four: Path) -> None:
    assert len(upkeep.prune(four, older_than=2.5 * 86400).removed) == 2
    assert names(four) == ["c", "d"]
    assert upkeep.prune(four, max_size=10**9).removed == ()


def test_what_a_living_process_uses_stays(four: Path) -> None:
    process = use(four, "a")
    result = upkeep.prune(four, max_size=1)
    assert [entry.path.stem for entry in result.spared] == ["a"]
    assert [entry.path.stem for entry in result.removed] == ["b", "c", "d"]
    assert result.left == 1000
    process.kill()
    process.communicate()
    assert [e.path.stem for e in upkeep.prune(four, max_size=1).removed] == ["a"]
    # A killed process leaves its lease, but not its lock.
    assert not list((four / leases.FOLDER / "leases").iterdir())


def test_a_process_s_own_entries_stay(tmp_path: Path) -> None:
    cached("kind", "mine", ".bin", lambda p: p.write_bytes(b"x") and None, root=tmp_path)
    assert [e.path.stem for e in upkeep.prune(tmp_path, max_size=1).spared] == []
    result = upkeep.prune(tmp_path, older_than=-1)
    assert [e.path.stem for e in result.spared] == ["mine"]


def test_no_process_finds_an_entry_gone_that_it_was_given(tmp_path: Path) -> None:
    folder = tmp_path / "kind"
    folder.mkdir()
    for name in range(600):
        path = folder / f"{name}.bin"
        path.write_bytes(b"whole")
        os.utime(path, (1e9 + name, 1e9 + name))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHURN, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "begins\n"
        process.stdin.write("go\n")
        process.stdin.flush()
    removed = 0
    while any(process.poll() is None for process in processes):
        removed += len(upkeep.prune(tmp_path, max_size=1).removed)
    assert removed > 0
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err


def test_removing_waits_for_a_use_that_has_begun(four: Path) -> None:
    with leases._gate(four, alone=False):
        thread = threading.Thread(target=upkeep.prune, args=[four], kwargs={"max_size": 1})
        thread.start()
        time.sleep(0.2)
        assert names(four) == ["a", "b", "c", "d"]
    thread.join()
    assert names(four) == []


def test_the_size_is_bounded_by_itself(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVERIFY_CACHE_SIZE", "3KB")
    used(four, "e")
    assert names(four) == ["c", "d", "e"]
    monkeypatch.setenv("EDGEVERIFY_CACHE_SIZE", "much")
    with pytest.raises(UsageError, match="EDGEVERIFY_CACHE_SIZE"):
        cached("kind", "f", ".bin", lambda p: p.write_bytes(b"x") and None, root=four)


def test_a_cache_of_before_has_no_notes(four: Path) -> None:
    import shutil

    shutil.rmtree(four / leases.FOLDER)
    then = time.time() - 99 * 86400
    os.utime(four / "kind" / "c.bin", (then, then))
    upkeep.prune(four, max_size=3000)
    assert names(four) == ["a", "b", "d"]
    assert all(not fault for _, fault in verify(four))


def test_a_cache_that_cannot_be_written_is_read(
    four: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(leases, "begin", refuse)
    monkeypatch.setattr(leases, "_gate", refuse)
    entry = cached("kind", "a", ".bin", lambda p: pytest.fail("is there"), root=four)
    assert entry.exists()
    with pytest.raises(ArtifactError, match="cannot be written \\(Permission denied\\)"):
        upkeep.prune(four, max_size=1)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """One entry of each form."""

    def tflite(path: Path) -> None:
        weight = made.tensor("w", (3, 4), made.TYPES.FLOAT32, 1)
        data = np.ones((3, 4), np.float32).tobytes()
        made.write(path, "FULLY_CONNECTED", weight, data, (1, 4), (1, 3))

    makers = {
        ".tflite": tflite,
        ".safetensors": lambda p: save_file({"a": np.ones(9, np.float32)}, p),
        ".json": lambda p: p.write_text('{"a": 1}') and None,
        ".txt": lambda p: p.write_text("a1" * 32) and None,
        ".f32": lambda p: p.write_bytes(b"1234" * 3) and None,
    }
    for suffix, make in makers.items():
        cached("kind", "x", suffix, make, root=tmp_path)
    return tmp_path


def faults(root: Path) -> dict[str, str]:
    return {entry.path.suffix: fault for entry, fault in verify(root) if fault}


def test_whole_entries_are_whole(whole: Path) -> None:
    assert len(list(verify(whole))) == 5
    assert faults(whole) == {}


@pytest.mark.parametrize("suffix", [".tflite", ".safetensors", ".json", ".txt", ".f32"])
def test_one_bit_is_seen(whole: Path, suffix: str) -> None:
    path = whole / "kind" / f"x{suffix}"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert faults(whole) == {suffix: "does not hold what was written when it was made"}


def test_what_has_no_digest_must_be_readable(whole: Path) -> None:
    import shutil

    shutil.rmtree(whole / leases.FOLDER)
    for path in (whole / "kind").iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    found = faults(whole)
    assert found[".tflite"].startswith("cannot be read as a .tflite")
    assert found[".safetensors"].startswith("cannot be read (")
    assert found[".json"].startswith("cannot be read (")
    assert found[".txt"] == "is no digest"
    assert found[".f32"] == "is no whole number of float32 values"


@pytest.fixture
def damaged(whole: Path) -> Path:
    path = whole / "kind" / "x.json"
    path.write_text("{}")
    return whole


def test_damage_is_named_removed_and_made_again(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["cache", "verify", "--cache", str(damaged)]
    told = "kind/x.json: does not hold what was written when it was made"
    assert main(arguments) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == told
    assert out[1] == f"{damaged}: 5 entries read, 1 damaged"
    assert main([*arguments, "--remove"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{told}; removed"
    assert main([*arguments, "-q"]) == 0
    assert capsys.readouterr().out == ""
    assert not (damaged / "kind" / "x.json").exists()


def test_the_commands(four: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "ls.json"
    assert main(["cache", "ls", "--cache", str(four), "--json", str(target)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["KIND", "ENTRIES", "SIZE", "OLDEST", "LAST", "USE"]
    assert out[1].split()[:4] == ["kind", "4", "3.91", "KiB"]
    assert out[1].endswith("1 d ago")
    assert out[2] == f"{four}: 4 entries, 3.91 KiB"
    found = json.loads(target.read_text())
    assert [Path(e["path"]).stem for e in found["entries"]] == ["a", "b", "c", "d"]
    assert main(["cache", "prune", "--cache", str(four), "--max-size", "2500B", "-v"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "removed kind/a.bin  1000 B",
        "removed kind/b.bin  1000 B",
        f"{four}: 2 entries removed, 1.95 KiB; 1.95 KiB left",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list"], "cache: there is no 'list'; expected one of ls, prune, verify"),
        (["prune"], "says not what to remove; expected --max-size, --older-than or both"),
        (["prune", "--max-size", "x"], "--max-size: got 'x'"),
        (["prune", "--older-than", "3"], "--older-than: got '3'"),
        (["ls", "--remove"], "--remove: has no meaning to ls; expected verify"),
        (["verify", "--max-size", "1GiB"], "--max-size: has no meaning to verify; expected prune"),
    ],
)
def test_bad_usage(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", *arguments, "--cache", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_no_cache_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEVERIFY_CACHE", str(tmp_path / "none"))
    assert main(["cache", "verify"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'none'}: nothing is cached yet\n"
    assert main(["cache", "ls", "--cache", str(tmp_path / "typo")]) == 2
