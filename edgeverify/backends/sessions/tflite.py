"""A .tflite in the LiteRT interpreter as a session. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeverify.backends.interpreter import CACHE_ORDER, call, check_room, open_fitting, runner_of
from edgeverify.backends.sessions.session import Cache, Session
from edgeverify.backends.sessions.walk import unwalked, walk
from edgeverify.core import taps
from edgeverify.core.case import Case, Step
from edgeverify.core.edges import Edge
from edgeverify.core.errors import ArtifactError
from edgeverify.core.masks import masks_of
from edgeverify.core.trace import Trace

DECODE = "decode"


class TfliteSession(Session):
    """A session of a converted file, called with the caches as inputs and outputs.

    Args:
        path: the file.
        case: gives the rows, the prefill lengths, the KV layout and how masks are passed.
        kernel: ``xnnpack``, ``builtin`` or ``reference``.
        num_threads: threads of the interpreter.
        interpreter: of the file, already open; if None, the file is opened.

    Raises:
        ArtifactError: the file cannot be opened, or does not fit the case.
    """

    def __init__(
        self,
        path: Path,
        case: Case,
        kernel: str,
        *,
        num_threads: int = 1,
        interpreter: Any = None,
    ) -> None:
        super().__init__(f"tflite-{kernel}", case.kv_cache_len, case.prefill_lengths)
        self._path, self._case = path, case
        self._interpreter = interpreter or open_fitting(
            path, kernel=kernel, num_threads=num_threads
        )
        self._runners: dict[str, Any] = {}
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        for step in self._signatures():
            runner = runner_of(self._interpreter, path, step.signature)
            self._runners[step.signature] = runner
            shapes = {n: tuple(d["shape"]) for n, d in runner.get_input_details().items()}
            self._shapes[step.signature] = shapes
            check_room(path, case, step, shapes)
        self._prefills = {length: n for n, length in case.signatures.items() if n != DECODE}
        batch = self._shapes[DECODE]["tokens"][0] if DECODE in self._shapes else 1
        self.batch = batch if batch > 1 else 0
        self._clear()

    def read_cache(self) -> dict[str, np.ndarray]:
        """Returns a copy of the cache."""
        return self._rows(self._cache, 0)

    def write_cache(self, cache: Cache) -> None:
        """Replaces the cache."""
        self._cache = self._inputs_of([cache])

    def decode_batch(
        self, tokens: Sequence[int], caches: Sequence[Cache]
    ) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
        """One decode step of several conversations."""
        if not self.batch:
            return super().decode_batch(tokens, caches)
        outputs = self._call(DECODE, [[token] for token in tokens], self._inputs_of(caches))
        return outputs[taps.LOGITS][:, 0], [self._rows(outputs, row) for row in range(self.batch)]

    def _step(self, signature: str, tokens: list[int], real: int) -> np.ndarray | None:
        if self.batch and signature == DECODE:  # such a file has no other decode
            cache = self._rows(self._cache, 0)
            alike, caches = self.decode_batch(tokens * self.batch, [cache] * self.batch)
            self.write_cache(caches[0])
            return alike[:1]
        if signature != DECODE:
            signature = self._prefills[len(tokens)]  # some files have a name of their own
        outputs = self._call(signature, [tokens], self._cache)
        self._cache = {name: outputs[name] for name in self._cache}
        logits = outputs.get(taps.LOGITS)
        return None if logits is None else logits[0]

    def _call(
        self, signature: str, tokens: list[list[int]], cache: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        length = len(tokens[0])
        step = Step("step", signature, length, self.position, tuple(tokens[0]))
        shapes = self._shapes[signature]
        inputs = {
            "tokens": np.array(tokens, np.int32),
            "input_pos": np.arange(self.position, self.position + length, dtype=np.int32),
            **cache,
            **masks_of(self._case, step, shapes),
        }
        return call(self._runners[signature], self._path, step, inputs, shapes)

    def _signatures(self) -> list[Step]:
        return [
            Step("step", signature, length, 0, (0,) * length)
            for signature, length in self._case.signatures.items()
        ]

    def _clear(self) -> None:
        shapes = self._shapes[self._prefills[self.lengths[0]]]
        self._cache = {n: np.zeros(s, np.float32) for n, s in shapes.items() if "kv_cache" in n}

    def rows_of(self, outputs: Cache) -> dict[str, np.ndarray]:
        """Returns the first conversation's rows, (S, N, H), of a file's outputs."""
        return self._rows(outputs, 0)

    def _rows(self, outputs: Cache, row: int) -> dict[str, np.ndarray]:
        order = CACHE_ORDER[self._case.kv_layout]
        blocks = sum(name.startswith("kv_cache_k_") for name in self._cache)
        return {
            taps.kv(index, which): np.array(
                outputs[f"kv_cache_{which}_{index}"].transpose(order[which])[row], order="C"
            )
            for index in range(blocks)
            for which in "kv"
        }

    def _inputs_of(self, caches: Sequence[Cache]) -> dict[str, np.ndarray]:
        order = CACHE_ORDER[self._case.kv_layout]
        named = {}
        for name in caches[0]:
            _, index, which = name.split(".")
            stacked = np.stack([cache[name] for cache in caches])
            own = stacked.transpose(np.argsort(order[which]))
            named[f"kv_cache_{which}_{index}"] = np.ascontiguousarray(own)
        return named


def walk_open(
    interpreter: Any, path: Path, case: Case, edges: Sequence[Edge], cache: Cache
) -> Trace:
    """Walks edges on a file that is open already.

    Args:
        interpreter: has run the case.
        path, case: of the file.
        edges: the steps.
        cache: what the case's last step has returned, by the file's names.
    """
    try:
        session = TfliteSession(path, case, case.kernel, interpreter=interpreter)
    except ArtifactError as error:  # of a signature that no step of the case calls
        return unwalked(edges, str(error))
    end = case.steps[-1].end
    return walk(session, edges, {tap: rows[:end] for tap, rows in session.rows_of(cache).items()})
