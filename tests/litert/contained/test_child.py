"""A child may crash, hang, end or raise: the host lives, and tells what happened."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeverify.core.errors import ArtifactError, CheckpointError
from edgeverify.litert import contained

MISDEEDS = "tests.litert.contained.misdeeds"
FILE = Path("folder/some.tflite")


@pytest.fixture
def child() -> Iterator[contained.Child]:
    with contained.Child() as made:
        yield made


def ask(child: contained.Child, task: str, **options: object) -> object:
    return child.call(f"{MISDEEDS}:{task}", FILE, **options)  # type: ignore[arg-type]


def test_values_come_back(child: contained.Child) -> None:
    value = ask(child, "echo", numbers=[1, 2.5], path=Path("x/y"), nothing=None)
    assert value == {"file": str(FILE), "numbers": [1, 2.5], "path": "x/y", "nothing": None}


def test_one_process_answers_many_calls(child: contained.Child) -> None:
    assert ask(child, "pid") == ask(child, "pid")
    assert child.started == 1


def test_what_is_printed_is_no_answer(child: contained.Child) -> None:
    assert ask(child, "chatter") == "some.tflite"
    assert ask(child, "echo") == {"file": str(FILE)}


@pytest.mark.parametrize(
    ("task", "how", "status", "words"),
    [
        ("segfault", "crash", signal.SIGSEGV, r"crashed .* \(SIGSEGV: native code says something"),
        ("abort", "crash", signal.SIGABRT, r"crashed the process that opened it \(SIGABRT"),
        ("leave", "exit", 7, "ended the process that opened it, with status 7"),
        ("exit_politely", "exit", 8, "ended the process that opened it, with status 8"),
    ],
)
def test_the_end_of_a_child_is_an_error(
    child: contained.Child, task: str, how: str, status: int, words: str
) -> None:
    with pytest.raises(contained.EndedError, match=f"^folder/some.tflite: {words}") as caught:
        ask(child, task)
    assert (caught.value.how, caught.value.status) == (how, status)
    assert caught.value.where == str(FILE)
    assert caught.value.expected == "a file that can be read and run"
    assert "the file is damaged" in str(caught.value.fix)
    assert ask(child, "echo") == {"file": str(FILE)}
    assert child.started == 2


def test_a_hang_is_an_error(child: contained.Child) -> None:
    ask(child, "pid")
    start = time.perf_counter()
    with pytest.raises(contained.EndedError, match=r"did not finish within 0\.5 s") as caught:
        ask(child, "hang", seconds=0.5)
    assert caught.value.how == "hang"
    assert time.perf_counter() - start < 5
    assert ask(child, "echo", seconds=20) == {"file": str(FILE)}


def test_memory_is_bounded() -> None:
    with (
        contained.Child(memory=2**30) as child,
        pytest.raises(ArtifactError, match=r"some.tflite: needs more memory than it may take"),
    ):
        ask(child, "devour")


def test_errors_keep_their_parts(child: contained.Child) -> None:
    with pytest.raises(CheckpointError) as caught:
        ask(child, "raise_known")
    error = caught.value
    parts = (error.what, error.where, error.expected, error.fix)
    assert parts == ("is of wood", "some.tflite", "iron", "forge it")
    assert child.started == 1


@pytest.mark.parametrize(
    ("task", "words"), [("raise_unknown", "KeyError: 'spoon'; misdeeds.py:"), ("overflow", "Recur")]
)
def test_what_a_task_did_not_foresee_is_told(child: contained.Child, task: str, words: str) -> None:
    with pytest.raises(ArtifactError, match=rf"some.tflite: cannot be handled \({words}"):
        ask(child, task)


def test_a_child_ends_with_its_host() -> None:
    child = contained.Child()
    ask(child, "pid")
    process = child._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    try:
        assert process.wait(timeout=10) == 0
    except subprocess.TimeoutExpired:
        pytest.fail("it waits for requests that cannot come")
    finally:
        child.close()


def test_a_call_in_a_child_of_its_own() -> None:
    assert contained.call(f"{MISDEEDS}:echo", FILE) == {"file": str(FILE)}


def test_a_child_starts_with_little(child: contained.Child) -> None:
    """numpy and the runtime are imported by the tasks that need them."""
    heavy = {"torch", "tensorflow", "transformers", "numpy", "rich", "ai_edge_litert"}
    found = ask(child, "modules")
    assert isinstance(found, list)
    assert heavy.intersection(found) == set()


def test_a_copy_is_told_by_the_files_name(child: contained.Child) -> None:
    for task in ("raise_unknown", "segfault"):
        with pytest.raises(ArtifactError, match=r"^given.litertlm: "):
            ask(child, task, shown=Path("given.litertlm"))


def test_what_was_said_before_is_not_told_again(child: contained.Child) -> None:
    ask(child, "chatter")
    with pytest.raises(contained.EndedError, match=r"\(SIGABRT\)"):
        ask(child, "abort")
