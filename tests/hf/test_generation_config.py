"""The generation config of a checkpoint's folder: read, absent, or damaged and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeverify.core.errors import CheckpointError
from edgeverify.hf.generation_config import generation_config


def test_it_is_read_if_it_is_there(tmp_path: Path) -> None:
    assert generation_config(None) == {}
    assert generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    assert generation_config(tmp_path) == {"eos_token_id": [7, 2]}


def test_what_is_no_object_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("[1]")
    assert generation_config(tmp_path) == {}


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text("{")
    with pytest.raises(CheckpointError) as error:
        generation_config(tmp_path)
    assert error.value.where == str(path)
