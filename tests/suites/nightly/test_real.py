"""The nightly run with real checks: two at once on one empty cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MATRIX = """
schema = 1
[[include]]
models = ["tinyllama"]
recipes = ["float32", "dynamic_int8"]
runtimes = ["tf_lite"]
memory = "2GiB"
"""


@pytest.mark.slow
def test_two_at_once_on_one_cache_convert_once_and_agree(tmp_path: Path) -> None:
    matrix, cache = tmp_path / "matrix.toml", tmp_path / "cache"
    matrix.write_text(MATRIX)
    command = [sys.executable, "-m", "edgeverify.cli.main"]
    environment = {**os.environ, "EDGEVERIFY_CACHE": str(cache)}
    folders = [tmp_path / "one", tmp_path / "two"]
    runs = [
        subprocess.Popen(
            [*command, "nightly", "--matrix", str(matrix), "--jobs", "1", "--output", str(folder)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for folder in folders
    ]
    for process in runs:
        out, err = process.communicate(timeout=550)
        assert process.returncode == 0, out + err
    assert len(list((cache / "converted").glob("*.tflite"))) == 1
    assert subprocess.run([*command, "cache", "verify"], env=environment).returncode == 0
    one, two = (json.loads((folder / "nightly.json").read_text()) for folder in folders)
    assert list(one["cases"]) == [
        "tinyllama.tiny.default.float32",
        "tinyllama.tiny.default.dynamic_int8",
    ]
    for name, report in one["cases"].items():
        assert report["legs"] == two["cases"][name]["legs"]
        assert "tf_lite" in report["legs"]["runtime"]
        assert (folders[0] / "cases" / f"{name}.html").read_text().startswith("<!doctype html>")
        assert 0 < report["nightly"]["peak_memory"] < 2 * 2**30
