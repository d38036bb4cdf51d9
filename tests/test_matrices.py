"""The kept result of the exhaustive tests is of the tests and the versions that are there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgeverify.core.store.entries import PACKAGES
from tests import matrices

PINS = Path(__file__).parents[1] / "constraints.txt"


@pytest.fixture
def kept() -> dict[str, Any]:
    assert matrices.KEPT.exists(), "run: python -m tasks exhaustive"
    found: dict[str, Any] = json.loads(matrices.KEPT.read_text())
    return found


def test_each_exhaustive_test_has_passed_and_none_is_kept_that_is_gone(
    request: pytest.FixtureRequest, kept: dict[str, Any]
) -> None:
    found = request.config.stash[matrices.FOUND]
    assert found <= set(kept["passed"]), f"run: {kept['command']}"
    modules = {name.partition("::")[0] for name in found}
    known = {n for n in kept["passed"] if n.partition("::")[0] in modules}
    # A part of a module may be collected: pytest path::test.
    if request.config.args == ["tests"]:
        assert found == known == set(kept["passed"]), f"run: {kept['command']}"


def test_it_was_made_with_the_pinned_versions(kept: dict[str, Any]) -> None:
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", PINS.read_text(), re.MULTILINE))
    made = {name: version.partition("+")[0] for name, version in kept["versions"].items()}
    assert made == {name: pins[name] for name in PACKAGES}, f"run: {kept['command']}"


@pytest.mark.parametrize("inner", ["<failure/>", "<skipped/>"])
def test_a_run_that_did_not_pass_is_not_kept(inner: str, tmp_path: Path) -> None:
    junit, written = tmp_path / "junit.xml", tmp_path / "kept.json"
    good = '<testcase classname="tests.a" name="test_b[x]" time="1.25"/>'
    junit.write_text(f'<testsuites>{good}<testcase name="c">{inner}</testcase></testsuites>')
    assert matrices.keep(junit, written) == 1
    assert not written.exists()
    assert matrices.keep(junit, written) == 1  # no second use of one run's result
    assert not written.exists()
    junit.write_text(f"<testsuites>{good}</testsuites>")
    assert matrices.keep(junit, written) == 0
    assert json.loads(written.read_text())["passed"] == {"tests.a::test_b[x]": 1.2}
