"""Shards, keys and the memory of cases."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from edgeverify.core.errors import UsageError
from edgeverify.suites.nightly import plan
from edgeverify.suites.nightly.matrix import load_matrix
from tests.suites.nightly.fake import case

CASES = [case(str(number)) for number in range(10)]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10])
def test_shards_are_every_case_once_in_nearly_equal_parts(n: int) -> None:
    parts = [plan.share(CASES, (k, n)) for k in range(1, n + 1)]
    assert [c for part in parts for c in part] == CASES
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1


def test_no_shard_is_empty() -> None:
    with pytest.raises(UsageError, match="10 cases cannot be split in 11; expected at most 10"):
        plan.share(CASES, (3, 11))


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "a/b", "1/2/3", "-1/2"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected k/n with k from 1 to n"):
        plan.parse_shard(text)


def test_a_pattern_of_ids() -> None:
    cases = load_matrix().cases
    found = plan.chosen(cases, ["gemma2.*.fp16", "phi2.tiny.default.float32"])
    assert [c.id for c in found] == [
        "gemma2.tiny.default.fp16",
        "gemma2.tiny.transposed.fp16",
        "phi2.tiny.default.float32",
    ]
    with pytest.raises(UsageError, match="'gema\\*' fits no case"):
        plan.chosen(cases, ["gema*"])


def test_a_key_depends_on_the_case_the_code_and_the_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = case("a", "gemma2", recipe="fp16")
    key = plan.key_of(one, "code")
    assert plan.key_of(replace(one), "code") == key
    others = [
        plan.key_of(one, "other code"),
        plan.key_of(replace(one, recipe="float32"), "code"),
        plan.key_of(replace(one, layout="transposed"), "code"),
        plan.key_of(replace(one, runtimes=("tf_lite",)), "code"),
        plan.key_of(replace(one, options={"seed": 1}), "code"),
    ]
    monkeypatch.setattr("edgeverify.core.store.entries.versions", lambda: {"torch": "9"})
    others.append(plan.key_of(one, "code"))
    assert len({key, *others}) == 7
    # What it may take changes nothing of what comes out.
    monkeypatch.undo()
    assert plan.key_of(replace(one, memory=1, time_limit=3.0), "code") == key


def test_a_key_depends_on_the_files_of_the_case(tmp_path: Path) -> None:
    weights, port = tmp_path / "w" / "model.safetensors", tmp_path / "p" / "x.py"
    for path in (weights, port):
        path.parent.mkdir()
        path.write_text("1")
    one = case("a", f"{port}:PORT", checkpoint=str(weights.parent))
    keys = [plan.key_of(one, "")]
    os.utime(weights, (1, 1))
    keys.append(plan.key_of(one, ""))
    port.write_text("2")
    keys.append(plan.key_of(one, ""))
    (port.parent / "beside.py").write_text("3")
    keys.append(plan.key_of(one, ""))
    assert len(set(keys)) == 4


def test_goldens_are_held_against_by_float32_cases_and_count(tmp_path: Path) -> None:
    cases = [case("a"), case("b", recipe="fp16"), case("c", layout="transposed")]
    one, *others = plan.with_goldens(cases, tmp_path)
    assert one.golden == str(tmp_path.resolve())
    assert others == cases[1:]
    keys = {plan.key_of(case("a"), ""), plan.key_of(one, "")}
    (tmp_path / "x.safetensors").write_text("1")
    keys.add(plan.key_of(one, ""))
    (tmp_path / "x.safetensors").write_text("2")
    keys.add(plan.key_of(one, ""))
    assert len(keys) == 4
    assert plan.with_goldens([case("a")], None) == [case("a")]


def test_the_code_is_that_of_edgeverify_and_of_the_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("edgeverify", "models"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.setattr(plan, "PACKAGE", tmp_path / "edgeverify")
    monkeypatch.setattr(plan.models, "__file__", str(tmp_path / "models" / "__init__.py"))
    seen = {plan.code_digest()}
    for name in ("edgeverify", "models"):
        path = tmp_path / name / "deep" / "x.py"
        path.write_text("a")
        seen.add(plan.code_digest())
        path.write_text("b")
        seen.add(plan.code_digest())
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("fields", "need"),
    [
        ({"size": "tiny"}, 2.0),
        ({"size": "135m"}, 2 + 18 * 135e6 / 2**30),
        ({"size": "1.1b"}, 2 + 18 * 1.1e9 / 2**30),
        ({"checkpoint": "Org/Model-360M-Instruct"}, 2 + 18 * 360e6 / 2**30),
        ({"size": "1.1b", "memory": 3 * 2**30}, 3.0),
    ],
)
def test_the_memory_of_a_case(fields: dict[str, object], need: float) -> None:
    assert plan.need_of(case("a", **fields)) / 2**30 == pytest.approx(need)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("model.safetensors", 2_000_000),
        ("model-Q4_K_M.gguf", 8_000_000),
        ("model.q8_0.gguf", 4_000_000),
        ("model-F16.gguf", 2_000_000),
        ("model.gguf", 4_000_000),
        ("tokenizer.json", 0),
    ],
)
def test_the_memory_of_a_checkpoint_is_by_its_files(
    name: str, parameters: int, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"x" * 4_000_000)
    need = plan.need_of(case("a", checkpoint=str(tmp_path)))
    assert need - 2 * 2**30 == 18 * parameters
