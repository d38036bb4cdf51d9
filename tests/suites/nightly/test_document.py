"""One document of many reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeverify.suites.nightly import store
from edgeverify.suites.nightly.document import of_run
from tests.suites.nightly.fake import report


def plan(**cases: str | None) -> dict[str, Any]:
    return {"started": "then", "shard": None, "excluded": [], "cases": cases}


def keep(folder: Path, name: str, outcome: str = "pass", torch: str = "2.13") -> None:
    (folder / store.CASES).mkdir(exist_ok=True)
    found = report(outcome)
    found["environment"] = {"torch": torch, "numpy": "2"}
    found["nightly"] = {"id": name, "key": f"key of {name}"}
    store.write_case(folder, name, found)


def test_the_worst_case_is_the_outcome(tmp_path: Path) -> None:
    keys = {name: f"key of {name}" for name in "abc"}
    for name in "abc":
        keep(tmp_path, name)
    assert of_run(tmp_path, plan(**keys))["outcome"] == "pass"
    (tmp_path / store.CASES / "b.json").unlink()
    found = of_run(tmp_path, plan(**keys))
    assert (found["outcome"], found["missing"]) == ("unchecked", ["b"])
    keep(tmp_path, "c", "fail")
    found = of_run(tmp_path, plan(**keys))
    assert (found["outcome"], found["missing"]) == ("fail", ["b"])


def test_a_result_of_other_code_is_missing(tmp_path: Path) -> None:
    """A run that was started again with other code, and killed, leaves some."""
    keep(tmp_path, "a")
    for key in ("key of other code", None):
        found = of_run(tmp_path, plan(a=key))
        assert (found["outcome"], found["missing"]) == ("unchecked", ["a"])


def test_half_a_file_is_none(tmp_path: Path) -> None:
    keep(tmp_path, "a")
    for text in ("", '{"outc', "[]", "{}"):
        (tmp_path / store.CASES / "a.json").write_text(text)
        assert of_run(tmp_path, plan(a="key of a"))["missing"] == ["a"]


def test_no_case_is_no_pass(tmp_path: Path) -> None:
    assert of_run(tmp_path, plan())["outcome"] == "unchecked"


def test_what_not_all_have_in_common_is_told(tmp_path: Path) -> None:
    keep(tmp_path, "a", torch="2.13")
    keep(tmp_path, "b", torch="2.14")
    found = of_run(tmp_path, plan(a="key of a", b="key of b"))
    assert found["environment"] == {"numpy": "2"}
    assert found["differing"] == {"torch": ["2.13", "2.14"]}
