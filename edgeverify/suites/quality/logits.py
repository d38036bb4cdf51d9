"""Logits of a text, window by window: the reference's, kept on disk, and a file's, streamed.

No more than one window is in memory: at 49,152 ids 25 MB, at 256,000 ids 131 MB.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeverify.backends.interpreter import call, check_room, open_fitting, runner_of
from edgeverify.core import taps
from edgeverify.core.case import Case, Step
from edgeverify.core.errors import ArtifactError
from edgeverify.core.masks import masks_of
from edgeverify.suites.quality.statistics import Positions, compare, join
from edgeverify.suites.quality.text import Window


@dataclass(frozen=True)
class Scored:
    """A file's positions, and how fast its prefills were.

    Attributes:
        positions: of all windows, in order.
        tokens_per_second: of the calls, pads included; without the first call, in which kernels
            pack their weights, where there are others.
    """

    positions: Positions
    tokens_per_second: float


def write_reference(
    model: Any, windows: Sequence[Window], path: Path, tick: Callable[[], None]
) -> None:
    """Writes the reference's logits (N, V) float32, row after row, to ``path``.

    float32 is enough: of SmolLM2-135M KL(float64 oracle ‖ float32) is 5e-12 and 1.2e-11 at the
    mean over two windows of 128, and 5e-11 at most (``tests/suites/quality/test_real.py``). The
    float file has 4e-11 at the mean, the best quantization, fp16, 2e-6.

    Args:
        model: from ``backends.reference.build``.
        windows: each run from an empty cache.
        path: the file to write. It is written, not mapped: on a full disk a map ends the process.
        tick: called after each window.
    """
    import torch

    threads = torch.get_num_threads()

    def logits(window: Window) -> np.ndarray:
        with torch.inference_mode():  # it is a thread's own
            found = model(input_ids=torch.tensor([window.tokens]), use_cache=False).logits
        return found[0].float().numpy()

    # One window a thread instead of one after another on all of them: threads that wait for each
    # other at every operation take 5 to 13 s a window on a busy machine with two cores, these 1 s.
    with (
        path.open("wb") as file,
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        for first in range(0, len(windows), threads):
            for rows in pool.map(logits, windows[first : first + threads]):
                file.write(np.ascontiguousarray(rows).tobytes())
                tick()
    torch.set_num_threads(threads)  # what the pool's threads set is told to all later ones


def read_reference(path: Path, windows: Sequence[Window]) -> np.ndarray:
    """The logits that ``write_reference`` wrote, (N, V) float32, mapped and not read."""
    count = sum(len(window.targets) for window in windows)
    return np.memmap(path, np.float32, mode="r").reshape(count, -1)


def score_file(
    path: Path,
    case: Case,
    windows: Sequence[Window],
    reference: np.ndarray,
    *,
    num_threads: int,
    tick: Callable[[], None] = lambda: None,
) -> Scored:
    """Runs a file over the windows and compares its logits with the reference's.

    Args:
        path: a .tflite with the case's prefill signature.
        case: its one prefill length is the windows'.
        windows: at most as long.
        reference: from ``read_reference``.
        num_threads: of the interpreter, and of the comparison.
        mask_kinds, sliding_window: as ``backends.tflite.run`` takes them.
        tick: called after each window.

    Raises:
        ArtifactError: the file cannot be opened or run, returns no logits in prefill, or has
            another vocabulary.
    """
    length = case.prefill_lengths[0]
    interpreter = open_fitting(path, kernel=case.kernel, num_threads=num_threads)
    steps = [_step(window, length) for window in windows]
    runner = runner_of(interpreter, path, steps[0].signature)
    details = runner.get_input_details()
    shapes = {name: tuple(item["shape"]) for name, item in details.items()}
    check_room(path, case, steps[0], shapes)
    empty = {name: np.zeros(s, np.float32) for name, s in shapes.items() if "kv_cache" in name}
    parts: list[Positions] = []
    seconds: list[float] = []
    row = 0
    with ThreadPoolExecutor(num_threads) as pool:
        for window, step in zip(windows, steps, strict=True):
            masks = masks_of(case, step, shapes)
            inputs = {
                "tokens": np.array([step.padded_tokens], np.int32),
                "input_pos": np.arange(length, dtype=np.int32),
                **empty,
                **masks,
            }
            start = time.perf_counter()
            outputs = call(runner, path, step, inputs, shapes, first=not parts)
            seconds.append(time.perf_counter() - start)
            count = len(window.targets)
            own = _logits(outputs, path, reference.shape[1])[:count]
            parts.append(_compared(pool, reference[row : row + count], own, window.targets))
            row += count
            tick()
    timed = seconds[1:] or seconds
    return Scored(join(parts), length * len(timed) / sum(timed))


def _compared(
    pool: ThreadPoolExecutor, reference: np.ndarray, own: np.ndarray, targets: Sequence[int]
) -> Positions:
    """``compare`` on as many threads as the pool has: numpy lets go of the lock."""
    parts = np.array_split(np.arange(len(targets)), min(pool._max_workers, len(targets)))
    ids = np.asarray(targets)
    return join(list(pool.map(lambda rows: compare(reference[rows], own[rows], ids[rows]), parts)))


def _step(window: Window, length: int) -> Step:
    return Step(f"window.{window.index}", f"prefill_{length}", length, 0, window.tokens)


def _logits(outputs: Mapping[str, np.ndarray], path: Path, vocabulary: int) -> np.ndarray:
    """(T, V) of the one conversation."""
    found = outputs.get(taps.LOGITS)
    if found is None or found.shape[-1] != vocabulary:
        told = "no logits" if found is None else f"logits over {found.shape[-1]} ids"
        raise ArtifactError(
            f"prefill returns {told}",
            where=path,
            expected=f"logits over the reference's {vocabulary} ids",
            fix="convert it with logits in prefill, and the whole vocabulary",
        )
    return found[0]
