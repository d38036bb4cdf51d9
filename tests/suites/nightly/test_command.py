"""``edgeverify nightly`` as a process: killed, two at once, on a full disk, in shards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from edgeverify.suites.nightly import store
from tests.suites.nightly import fake

ROOT = Path(__file__).parents[3]
MATRIX = """
schema = 1
[[include]]
models = ["gemma1", "gemma2", "phi2"]
sizes = ["tiny"]
layouts = ["default", "transposed"]
recipes = ["float32", "fp16"]
memory = "64MiB"
"""
IDS = [
    f"{model}.tiny.{layout}.{recipe}"
    for model in ("gemma1", "gemma2", "phi2")
    for layout in ("default", "transposed")
    for recipe in ("float32", "fp16")
]


class Nightly:
    """Starts ``edgeverify nightly`` with cases that only pause."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.log.write_text("")
        self.matrix = folder / "matrix.toml"
        self.matrix.write_text(MATRIX)

    def start(self, *arguments: object, pause: float = 0.0, **env: str) -> subprocess.Popen[str]:
        given = [] if "--merge" in arguments else ["--matrix", self.matrix, "--jobs", 2]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.suites.nightly.fake", *map(str, [*given, *arguments])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
            env={**os.environ, fake.LOG: str(self.log), fake.PAUSE: str(pause), **env},
        )

    def run(self, *arguments: object, **options: Any) -> tuple[int, str, str]:
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def events(self, what: str) -> list[str]:
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [name for kind, name, _ in lines if kind == what]


@pytest.fixture
def nightly(tmp_path: Path) -> Nightly:
    return Nightly(tmp_path)


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "nightly.json").read_text())


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120  # imports alone take half a minute on a busy machine
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_run_is_one_document(nightly: Nightly, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    out = tmp_path / "out"
    copy = tmp_path / "copy.json"
    status, said, err = nightly.run(
        "--output", out, "--json", copy, GITHUB_STEP_SUMMARY=str(summary)
    )
    assert status == 0, err
    found = read(out)
    assert found == json.loads(copy.read_text())
    assert (found["schema"], found["kind"], found["outcome"]) == (1, "nightly", "pass")
    assert list(found["cases"]) == IDS
    assert found["environment"] == {"torch": "2.13"}
    assert found["missing"] == found["excluded"] == []
    assert said.startswith("PASS nightly · 12 cases: 12 pass, 0 fail, 0 unchecked · ")
    assert len(err.splitlines()) == 12
    assert "### ✅ PASS nightly" in summary.read_text()
    assert len(ET.parse(out / "junit.xml").findall(".//testcase")) == 12
    assert "cases/phi2.tiny.default.fp16.html" in (out / "index.html").read_text()
    # What is kept of a case is a report itself.
    assert json.loads((out / "cases" / f"{IDS[0]}.json").read_text()) == found["cases"][IDS[0]]


def test_a_killed_run_repeats_nothing_and_loses_nothing(nightly: Nightly, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = nightly.start("--output", out, pause=0.2)
    cases = out / store.CASES
    until(lambda: len(list(cases.glob("*.json"))) >= 5)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path.stem: path.read_bytes() for path in cases.glob("*.json")}
    assert 5 <= len(kept) < 12
    assert not (out / "nightly.json").exists()
    nightly.log.write_text("")
    status, said, _ = nightly.run("--output", out)
    assert status == 0
    assert f"{len(kept)} of 12 cases are finished already (--fresh runs them again)" in said
    assert sorted(nightly.events("begin")) == sorted(set(IDS) - set(kept))
    assert {name: (cases / f"{name}.json").read_bytes() for name in kept} == kept
    assert list(read(out)["cases"]) == IDS
    # Once more: nothing is left to do; and all again where that is asked for.
    nightly.log.write_text("")
    assert nightly.run("--output", out)[0] == 0
    assert nightly.events("begin") == []
    assert nightly.run("--output", out, "--fresh")[0] == 0
    assert len(nightly.events("begin")) == 12


def test_processes_end_with_a_host_that_is_killed_alone(nightly: Nightly, tmp_path: Path) -> None:
    # The real watch is the check's own; a fake case has no reason to outlive its pause.
    from edgeverify.suites.nightly import child

    script = (
        "import os, sys, time\n"
        "from edgeverify.suites.nightly import child\n"
        "child.ORPHAN_SECONDS = 0.05\n"
        "if os.fork() == 0:\n"
        "    child._host = os.getppid()\n"
        "    child._end_with_host()\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "time.sleep(0.5)\n"
    )
    assert child.ORPHAN_SECONDS <= 1
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    process = int(done.stdout)
    until(lambda: not Path(f"/proc/{process}").exists())


def test_two_runs_in_one_folder_are_refused(nightly: Nightly, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = nightly.start("--output", out, pause=0.3)
    until(lambda: bool(nightly.events("begin")))
    status, _, err = nightly.run("--output", out)
    assert status == 2
    assert err == (
        f"edgeverify: error: --output {out}: another run works in it; expected a folder for each"
        " run; wait for it to end, or name another folder\n"
    )
    first.communicate(timeout=120)
    assert first.returncode == 0
    assert len(nightly.events("begin")) == 12


def test_shards_merge_into_the_whole(nightly: Nightly, tmp_path: Path) -> None:
    whole, merged = tmp_path / "whole", tmp_path / "merged"
    assert nightly.run("--output", whole)[0] == 0
    parts = [tmp_path / f"part{k}" for k in (1, 2, 3)]
    for k, part in enumerate(parts, start=1):
        assert nightly.run("--output", part, "--shard", f"{k}/3")[0] == 0
        assert read(part)["shard"] == f"{k}/3"
    status, said, _ = nightly.run("--merge", *parts, "--output", merged)
    assert status == 0
    assert said.startswith("PASS nightly · 12 cases: 12 pass, 0 fail, 0 unchecked\n")

    def plain(folder: Path) -> dict[str, Any]:
        found = read(folder)
        for report in found["cases"].values():
            del report["nightly"]["pid"]
        return {n: v for n, v in found.items() if n not in ("started", "seconds")}

    assert plain(merged) == plain(whole)
    # The order of the folders is none of the document's.
    assert nightly.run("--merge", *parts[::-1], "--output", merged)[0] == 0
    assert plain(merged) == plain(whole)
    # The folder is as the whole run's: with every page, and merged once more without a change.
    assert len(list((merged / "cases").iterdir())) == 24
    assert nightly.run("--merge", merged, "--output", tmp_path / "again")[0] == 0
    assert plain(tmp_path / "again") == plain(whole)


def test_a_merge_without_a_shard_is_not_green(nightly: Nightly, tmp_path: Path) -> None:
    parts = [tmp_path / f"part{k}" for k in (1, 2)]
    for k, part in enumerate(parts, start=1):
        assert nightly.run("--output", part, "--shard", f"{k}/2")[0] == 0
    status, said, _ = nightly.run("--merge", parts[0], "--output", tmp_path / "merged")
    assert status == 3
    assert "12 cases: 6 pass, 0 fail, 6 unchecked · 6 of them missing" in said
    assert read(tmp_path / "merged")["missing"] == IDS[6:]
    # Nor is one whose shard lost a case.
    (parts[1] / "cases" / f"{IDS[7]}.json").unlink()
    assert nightly.run("--merge", *parts, "--output", tmp_path / "merged")[0] == 3
    assert read(tmp_path / "merged")["missing"] == [IDS[7]]


def test_what_cannot_be_merged_is_refused(nightly: Nightly, tmp_path: Path) -> None:
    part, other = tmp_path / "part", tmp_path / "other"
    assert nightly.run("--output", part, "--shard", "1/2")[0] == 0
    target = ("--output", tmp_path / "merged")
    for arguments, words in (
        (["--merge", tmp_path], f"{tmp_path}: holds no nightly run (FileNotFoundError"),
        (["--merge", part, part / "."], "is in"),
        (["--merge", part, "--shard", "1/2"], "--shard: has no meaning here: nothing is run"),
    ):
        if arguments[-1] == part / ".":
            arguments[-1] = _copy(part, tmp_path / "copy")
        status, _, err = nightly.run(*arguments, *target)
        assert status == 2
        assert words in err
    status, _, err = nightly.run("--merge", part, "--output", part)
    assert (status, err) == (
        2,
        f"edgeverify: error: --merge {part}: is --output, too; expected a folder for the report\n",
    )
    assert nightly.run("--output", other, "--case", "phi2.*")[0] == 0
    status, _, err = nightly.run("--merge", part, other, *target)
    assert status == 2
    assert f"--merge {other}: is of another matrix than {part}" in err


def _copy(source: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(source, target))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_leaves_whole_files(nightly: Nightly, small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 60_000)
    out = small_disk / "out"
    status, _, err = nightly.run("--output", out, "-q")
    assert status == 2
    assert err.startswith("edgeverify: error: ")
    assert "the disk is full" in err
    assert err.count("\n") == 1
    kept = list((out / "cases").glob("*.json"))
    assert 0 < len(kept) < 12
    assert all(json.loads(path.read_text())["outcome"] == "pass" for path in kept)
    assert not list(out.rglob("*.tmp"))
    # With room again it goes on from there.
    filler.unlink()
    nightly.log.write_text("")
    names = {path.stem for path in kept}
    nightly.run("--output", out, "-q")
    assert not names & set(nightly.events("begin"))


def test_a_dry_run_runs_nothing(nightly: Nightly, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, said, _ = nightly.run("--output", out, "--dry-run", "--shard", "2/3")
    assert status == 0
    assert said.splitlines() == [f"{name}  64 MiB" for name in IDS[4:8]]
    assert not out.exists()


def test_a_failing_case_is_the_run_s_status(nightly: Nightly, tmp_path: Path) -> None:
    nightly.matrix.write_text(MATRIX.replace("64MiB", "3GiB"))
    status, said, _ = nightly.run("--output", tmp_path / "out", "--memory-budget", "1GiB")
    assert status == 3
    assert "UNCHECKED nightly · 12 cases: 0 pass, 0 fail, 12 unchecked" in said


def test_interrupted_it_keeps_what_is_done(nightly: Nightly, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = nightly.start("--output", out, pause=1)
    until(lambda: len(list((out / store.CASES).glob("*.json"))) >= 3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.endswith("edgeverify: error: interrupted\n")
    assert len(list((out / store.CASES).glob("*.json"))) >= 3
    assert not (out / "nightly.json").exists()
