"""Measures one file with one kernel, in a process of its own: its peak of memory is its own.

``python -m edgeverify.suites.bench.worker`` takes a ``Job`` as JSON and prints a ``Sample`` as JSON
on its last line. Each repeat opens the file anew, calls both signatures once (kernels pack their
weights then; this is the warm-up and part of ``load``), and then times a prefill and decode steps.

The KV cache is handed in and out as numpy arrays at every call, as this runtime's Python interface
has it; an engine that keeps it in place decodes faster.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeverify.backends.interpreter import call, open_file
from edgeverify.core.errors import ArtifactError, EdgeVerifyError
from edgeverify.core.memory import peak_memory

DECODE_STEPS = 32
PREFILL = "prefill"
DECODE = "decode"


@dataclass(frozen=True)
class Job:
    """What to measure: a file, the kernels, the interpreter's threads, how often."""

    file: str
    kernel: str
    threads: int
    repeats: int


@dataclass(frozen=True)
class Sample:
    """What was measured; each list has one value a repeat.

    Attributes:
        prefill_signature: the longest one.
        prefill_tokens: how many tokens it takes.
        decode_steps: steps that were timed after a full prefill; 0 if the file has no decode.
        load: seconds from opening to the end of the first call of each signature.
        prefill: seconds of one call.
        decode: seconds of all steps.
        first_token: seconds of the prefill and one decode step (a prefill need not give logits).
        memory: bytes at most, of the whole process.
        memory_before: the same before the file was opened: Python and the runtime.
    """

    prefill_signature: str
    prefill_tokens: int
    decode_steps: int
    load: tuple[float, ...]
    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    first_token: tuple[float, ...]
    memory: int | None
    memory_before: int | None


class _Signature:
    """One signature, called from an empty or a given cache."""

    def __init__(self, interpreter: Any, path: Path, name: str) -> None:
        from edgeverify.core.case import Step

        self._path = path
        self._runner = interpreter.get_signature_runner(name)
        self._details = self._runner.get_input_details()
        self._shapes = {n: tuple(d["shape"]) for n, d in self._details.items()}
        self.length = self._shapes["tokens"][-1]
        self._step = Step(name, name, self.length, 0, (0,) * self.length)

    def empty(self) -> dict[str, np.ndarray]:
        """An empty cache, and masks that hide nothing: what they hide takes as long."""
        return {
            name: np.zeros(shape, self._details[name]["dtype"])
            for name, shape in self._shapes.items()
            if name.startswith(("kv_cache", "mask"))
        }

    def call(
        self, cache: Mapping[str, np.ndarray], position: int, *, first: bool = False
    ) -> tuple[dict[str, np.ndarray], float]:
        """The cache after the call, and its seconds."""
        inputs = {
            **self.empty(),
            **cache,
            "tokens": np.ones(self._shapes["tokens"], np.int32),
            "input_pos": np.arange(position, position + self.length, dtype=np.int32),
        }
        start = time.perf_counter()
        outputs = call(self._runner, self._path, self._step, inputs, self._shapes, first=first)
        seconds = time.perf_counter() - start
        return {name: outputs[name] for name in outputs if name.startswith("kv_cache")}, seconds


def measure(job: Job) -> Sample:
    """Measures in this process.

    Raises:
        ArtifactError: the file cannot be read or run, or has no prefill signature.
    """
    from edgeverify.litert.flatbuffer import ModelFile

    path = Path(job.file)
    before = peak_memory()
    model = ModelFile(path)
    lengths = {
        name: model.shape(name, "tokens")[-1]
        for name, signature in model.signatures.items()
        if name.startswith(PREFILL) and "tokens" in signature.inputs
    }
    if not lengths:
        raise ArtifactError(
            "has no prefill signature",
            where=path,
            expected="a file of the Generative API",
            fix=f"its signatures are {', '.join(model.signatures) or '(none)'}",
        )
    longest = max(lengths, key=lambda name: lengths[name])
    room = model.kv_cache_len() - lengths[longest]
    steps = min(DECODE_STEPS, room) if DECODE in model.signatures else 0
    del model
    repeats = [_repeat(job, longest, steps) for _ in range(job.repeats)]
    load, prefill, decode, first_token = zip(*repeats, strict=True)
    return Sample(
        longest,
        lengths[longest],
        steps,
        load,
        prefill,
        decode if steps else (),
        first_token if steps else (),
        peak_memory(),
        before,
    )


def _repeat(job: Job, prefill_name: str, steps: int) -> tuple[float, float, float, float]:
    """Seconds of the load, a prefill, all decode steps, and prefill and the first of them."""

    path = Path(job.file)
    start = time.perf_counter()
    interpreter = open_file(path, kernel=job.kernel, num_threads=job.threads)
    prefill = _Signature(interpreter, path, prefill_name)
    cache, _ = prefill.call({}, 0, first=True)
    decode = _Signature(interpreter, path, DECODE) if steps else None
    if decode is not None:
        decode.call(cache, prefill.length)
    load = time.perf_counter() - start
    cache, filled = prefill.call({}, 0)
    decoded = []
    for step in range(steps if decode is not None else 0):
        assert decode is not None
        cache, seconds = decode.call(cache, prefill.length + step)
        decoded.append(seconds)
    return load, filled, sum(decoded), filled + sum(decoded[:1])


def main() -> int:
    job = Job(**json.loads(sys.argv[1]))
    try:
        told: dict[str, Any] = asdict(measure(job))
    except EdgeVerifyError as error:
        told = {
            "error": error.what,
            "where": error.where,
            "expected": error.expected,
            "fix": error.fix,
        }
    print(f"\n{json.dumps(told)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
