"""What a change redoes: its own stages and no others, told by what is new in the cache."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import edgeverify_models as models
from edgeverify.core.results import PASS
from edgeverify.core.store import entries
from edgeverify.legs.conversion import converted
from edgeverify.legs.run import prepare
from edgeverify.legs.selectors import Selectors
from edgeverify.litert import quantize
from edgeverify.litert.recipes import load_recipe
from edgeverify.suites.check import verify
from edgeverify_models.port import Port

# Of the reference and the oracle: what depends on the checkpoint and the tokens alone.
ORACLE = {
    "reference",
    "oracle",
    "floor",
    "isolated-floor",
    "summed-floor",
    "summed-isolated-floor",
    "edges",
    "edges-authoring",
    "edges-conversion",
}
# A method that computes what the inherited one does: an edit of the class that changes no number.
EDIT = (
    "    def forward(self, *args: object, **kwargs: object) -> object:\n"
    "        return super().forward(*args, **kwargs)\n"
)
CLASS = re.compile(r"^class TinyLlama\(.*?\n\n(?=\S)", re.DOTALL | re.MULTILINE)


class Redone:
    """Checks copied ports, and tells what each check has added to the cache."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.ports: dict[str, Path] = {}
        for name, file in (("mine", "tiny_llama"), ("other", "phi")):
            self.ports[name] = folder / f"{name}.py"
            shutil.copyfile(f"{Path(models.__file__).parent}/{file}.py", self.ports[name])
        self.stages: set[str] = set()

    def check(self, **chosen: Any) -> set[str]:
        """The kinds of entries that were made."""
        before = self._entries()
        options = {"kv_cache_len": 96, "decode_steps": 2, "cache": self.cache, **chosen}
        report = verify(f"{self.ports['mine']}:TINYLLAMA", **options)
        assert report.outcome == PASS
        self.stages = set(report.timings)
        return {path.parent.name for path in self._entries() - before}

    def edit(self, name: str) -> None:
        text = self.ports[name].read_text()
        if name == "mine":
            text, edited = CLASS.subn(lambda found: f"{found[0].rstrip()}\n\n{EDIT}\n\n", text)
            assert edited == 1
        self.ports[name].write_text(text + "\nEDITED = True\n")

    def _entries(self) -> set[Path]:
        return {path for path in self.cache.glob("[!.]*/*") if not path.name.startswith(".")}


@pytest.mark.slow
def test_an_edit_redoes_its_own_stages_alone(tmp_path: Path) -> None:
    redone = Redone(tmp_path)
    assert {*ORACLE, "converted", "instrumented", "facts", "read-files"} <= redone.check()
    assert redone.check() == set()
    assert redone.stages & {"convert", "reference, float32", "oracle, float64"} == set()
    redone.edit("other")
    assert redone.check() == set()

    redone.edit("mine")
    made = redone.check()
    assert "converted" in made
    assert made & ORACLE == set()
    assert {"re-authored", "convert", "run .tflite"} <= redone.stages
    assert redone.check() == set()

    made = redone.check(recipes=("dynamic_int8",))
    assert "quantized" in made
    assert "converted" not in made
    assert redone.stages & {"convert"} == set()
    assert redone.check(recipes=("dynamic_int8",)) == set()

    made = redone.check(token_seed=5)
    assert made == ORACLE
    assert redone.check() == set()


class _FoundError(Exception):
    def __init__(self, kind: str, key: str) -> None:
        super().__init__(kind)
        self.key = key


@contextmanager
def keys_told(monkeypatch: pytest.MonkeyPatch, kind: str) -> Iterator[None]:
    """Ends at the first look-up of a kind of entry, with its key."""
    cached = entries.cached

    def tell(asked: str, key: str, *args: Any, **options: Any) -> Path:
        if asked == kind:
            raise _FoundError(asked, key)
        return cached(asked, key, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(entries, "cached", tell)
        yield


def converted_key(port: Port, monkeypatch: pytest.MonkeyPatch) -> str:
    run, _ = prepare(port, Selectors.of(decode_steps=1), verbose=False, progress=None)
    with keys_told(monkeypatch, "converted"), pytest.raises(_FoundError) as found:
        converted(run)
    return found.value.key


def quantized_key(file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    recipe = load_recipe("dynamic_int8")
    with keys_told(monkeypatch, "quantized"), pytest.raises(_FoundError) as found:
        quantize.quantized(file, recipe)
    return found.value.key


@contextmanager
def updated(package: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    version = metadata.version
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", lambda p: "99.0" if p == package else version(p))
        yield


def test_another_transformers_converts_and_quantizes_nothing_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port, file = models.load("tinyllama"), tmp_path / "x.tflite"
    file.write_bytes(b"any")
    before = converted_key(port, monkeypatch), quantized_key(file, monkeypatch)
    with updated("transformers", monkeypatch):
        assert (converted_key(port, monkeypatch), quantized_key(file, monkeypatch)) == before
    with updated("litert-torch", monkeypatch):
        assert converted_key(port, monkeypatch) != before[0]
    with updated("ai-edge-quantizer", monkeypatch):
        assert quantized_key(file, monkeypatch) != before[1]


def test_a_port_of_the_user_s_own_may_use_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    port = models.load("tinyllama")
    mine = dataclasses.replace(port, name="mine")
    variant = dataclasses.replace(port, model_config=lambda hf: port.model_config(hf))
    for own in (mine, variant):
        before = converted_key(own, monkeypatch)
        with updated("transformers", monkeypatch):
            assert converted_key(own, monkeypatch) != before
