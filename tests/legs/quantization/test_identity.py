"""What a quantized file's weights make is cached by everything that decides it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeverify.audits.weight_map import Span
from edgeverify.legs.quantization.leg import _with_weights

Q, K = Span("q.weight"), Span("k.weight")


def inputs(folder: Path) -> dict[str, Any]:
    return {
        "content": b"a file",
        "hf_config": {"model_type": "llama", "rope_theta": 1e4},
        "checkpoint": "one",
        "places": {"attn.q": (Q,), "attn.k": (K,)},
        "held": {"attn.q": None, "attn.k": None},
        "folder": folder,
    }


def identity(given: dict[str, Any]) -> str:
    path = given["folder"] / f"{len(list(given['folder'].iterdir()))}.tflite"
    path.write_bytes(given["content"])
    run: Any = SimpleNamespace(
        state=dict,
        hf_config=given["hf_config"],
        cache=given["folder"] / "cache",
        checkpoint=SimpleNamespace(identity=given["checkpoint"], size="tiny", description="d"),
        of_checkpoint=lambda checkpoint: checkpoint,
    )
    weights: Any = SimpleNamespace(
        unties=lambda original: False, places=given["places"], held=given["held"]
    )
    made: Any = _with_weights(run, path, weights)
    return str(made.identity)


CHANGES: dict[str, Callable[[], Any]] = {
    "content": lambda: b"another file",
    "hf_config": lambda: {"model_type": "llama", "rope_theta": 2e4},
    "checkpoint": lambda: "another",
    "places": lambda: {"attn.q": (K,), "attn.k": (Q,)},
    "held": lambda: {"attn.q": None},
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_input_makes_another_identity(name: str, tmp_path: Path) -> None:
    given = inputs(tmp_path)
    assert identity({**given, name: CHANGES[name]()}) != identity(given)


def test_the_same_inputs_make_the_same(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    other = {**given, "places": dict(reversed(list(given["places"].items())))}
    assert identity(given) == identity(other)


def test_rows_of_a_tensor_count(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    parts = {"attn.q": (Span("q.weight", (0, 4), (4, 8)),), "attn.k": (K,)}
    assert identity({**given, "places": parts}) != identity(given)
