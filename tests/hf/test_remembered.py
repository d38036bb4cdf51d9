"""What a config's model is like is read off it once, and again where it could be otherwise."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from edgeverify.hf.remembered import described

CONFIG = {"model_type": "llama", "hidden_size": 8}


class Maker:
    def __init__(self, *answers: Any) -> None:
        self.answers, self.calls = list(answers), 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.answers[0]


def test_it_is_made_once(tmp_path: Path) -> None:
    make = Maker({"layers": 3, "eps": 1e-5})
    for _ in range(2):
        assert described("x", CONFIG, ("core/case.py",), make, tmp_path) == {
            "layers": 3,
            "eps": 1e-5,
        }
    assert make.calls == 1


@pytest.mark.parametrize(
    "asked",
    [
        ("y", CONFIG, ("core/case.py",)),
        ("x", {**CONFIG, "hidden_size": 9}, ("core/case.py",)),
        ("x", CONFIG, ("core/taps.py",)),
    ],
)
def test_another_question_is_another_answer(asked: Any, tmp_path: Path) -> None:
    make = Maker(1)
    described("x", CONFIG, ("core/case.py",), make, tmp_path)
    described(*asked, make, tmp_path)
    assert make.calls == 2


def test_another_transformers_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Maker(1)
    described("x", CONFIG, ("core/case.py",), make, tmp_path)
    version = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda p: "99.0" if p == "transformers" else version(p)
    )
    described("x", CONFIG, ("core/case.py",), make, tmp_path)
    assert make.calls == 2


@pytest.mark.parametrize("answer", [(1, 2), {1: 2}, {3}])
def test_what_json_would_change_is_made_every_time(answer: Any, tmp_path: Path) -> None:
    make = Maker(answer)
    for _ in range(2):
        assert described("x", CONFIG, ("core/case.py",), make, tmp_path) == answer
    assert make.calls == 2


def test_what_raises_is_told(tmp_path: Path) -> None:
    def make() -> Any:
        raise ValueError("no such model")

    for _ in range(2):
        with pytest.raises(ValueError, match="no such model"):
            described("x", CONFIG, ("core/case.py",), make, tmp_path)
