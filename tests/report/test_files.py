from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeverify.core.errors import UsageError
from edgeverify.core.results import Report
from edgeverify.report.files import check_paths, write_atomically, write_reports


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[..., Report]
) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(UsageError) as caught:
        write_reports(report(), {"json": path})
    assert str(caught.value) == f"{path}: cannot be written (No space left on device)"
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_text_is_written_whole_as_utf_8(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "é–\n")
    assert (tmp_path / "a").read_bytes() == "é–\n".encode()


def test_a_file_that_exists_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "r.json").touch()
    check_paths({"--json": tmp_path / "r.json", "--html": tmp_path / "r.html"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        check_paths({"--json": tmp_path / "r.json"})
