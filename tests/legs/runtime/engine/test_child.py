"""The engine's process: that it ends badly, or not at all, is an error and no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeverify.backends import litert_lm
from edgeverify.core.errors import ArtifactError

QUESTIONS = litert_lm.Questions(("a",), "a", 2, "b", None)


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``child(code)``: another program in the engine's place."""
    run = subprocess.run

    def replaced(code: str) -> None:
        def start(command: list[str], **options: Any) -> Any:
            return run([sys.executable, "-c", code, *command[3:]], **options)

        monkeypatch.setattr(litert_lm.subprocess, "run", start)

    return replaced


def told(**options: Any) -> str:
    with pytest.raises(ArtifactError) as error:
        litert_lm.ask(Path("x.litertlm"), QUESTIONS, **options)
    assert error.value.where == "x.litertlm"
    return error.value.what


def test_a_crash_is_told_with_signal_and_step(child: Any) -> None:
    child(
        "import os, signal, sys; open(sys.argv[2], 'w').write('{\"step\": \"prefill\"}');"
        "os.kill(os.getpid(), signal.SIGSEGV)"
    )
    assert told() == "LiteRT-LM ended its process with SIGSEGV at prefill"


def test_a_hang_is_told(child: Any) -> None:
    child("import time; time.sleep(60)")
    assert told(timeout=0.5) == "LiteRT-LM gave no answer within 0.5 seconds"


def test_the_engines_own_words_are_told_without_their_place(child: Any) -> None:
    child(
        "import sys; print('E0000 00:00:1.2 77 engine.cc:1004] Failed to run:   too  long',"
        " file=sys.stderr); sys.exit(1)"
    )
    assert told() == "LiteRT-LM refuses it at load (Failed to run: too long)"
