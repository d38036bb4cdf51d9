"""Measures whether the cost of a check grows linearly with layers, tokens and decode steps.

``python -m benchmarks.growth [--only CURVE] [--repeat N] [--points FILE] [--svg FILE]`` checks
SmolLM-135M's geometry (seeded weights) with more and more layers, then with longer and longer
conversations, then with more decode steps, each point in its own process with an empty cache:

- *whole*: the authoring leg, the model in memory;
- *streamed*: the same with the weights on the disk (``--memory-budget``);
- *converted*: authoring and conversion, all taps of the file.

The process checks the tiny port first, which loads and warms the libraries. What follows is
counted: seconds of the clock and of the processor (of all threads), and peak memory (VmHWM). Points
are measured in turn, ``--repeat`` times; the smallest value counts. PyTorch has one thread, because
waiting for another thread would count as work.

For each curve it prints the least-squares line through all points, its R², and *growth*: the
largest point divided by what a line through the smaller ones predicts for it. It exits with 1 if
the growth of the processor's seconds or of the memory is above ``LIMIT``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.line import fit, growth
from benchmarks.plot import Curve, Panel, drawn

# A linear cost has a growth of 1 within its noise, which is printed beside it. A quadratic cost has
# 1.6 and more at these sizes (tests/benchmarks/test_line.py). Attention is quadratic in the tokens
# by nature: in the largest conversation here it is a tenth of the operations.
LIMIT = 1.25
WAYS = ("whole", "streamed", "converted")
LAYERS = (2, 4, 8, 16, 30)
# Prefill signatures have n and 2n tokens. A conversation fills each once, then two thirds of the
# larger: 42, 77, 146, 284, 560 and 1113 tokens with the decode steps.
PREFILL = (8, 16, 32, 64, 128, 256)
DECODE_STEPS = (8, 16, 32, 64, 128)
# The values of the two sizes that a curve does not vary.
SOME_LAYERS, SOME_PREFILL, SOME_STEPS = 4, 16, 8


@dataclass(frozen=True)
class Point:
    """One check.

    Attributes:
        layers: blocks of the model.
        prefill: tokens of the shorter prefill signature; the longer one has twice as many.
        decode_steps: after the prompt.
        way: one of ``WAYS``.
    """

    layers: int
    prefill: int
    decode_steps: int
    way: str

    @property
    def tokens(self) -> int:
        """The number of all tokens of the conversation."""
        from edgeverify.core.case import prompt_length

        return prompt_length((self.prefill, 2 * self.prefill)) + self.decode_steps


@dataclass(frozen=True)
class Cost:
    """The cost of a check: seconds of the clock and of the processor, peak bytes of memory."""

    seconds: float
    busy: float
    memory: int


# Title of a curve's axis → its points, without their ``way``.
AXES: dict[str, list[Point]] = {
    "layers": [Point(n, SOME_PREFILL, SOME_STEPS, "") for n in LAYERS],
    "tokens": [Point(SOME_LAYERS, n, SOME_STEPS, "") for n in PREFILL],
    "decode steps": [Point(SOME_LAYERS, SOME_PREFILL, n, "") for n in DECODE_STEPS],
}
# Converting 30 layers takes as long as all smaller points together, and running a file on a
# thousand tokens as long again; neither adds information. A file does not depend on the decode
# steps.
LARGEST_CONVERTED = {"layers": 16, "tokens": 560}
CURVES = [(axis, way) for axis in AXES for way in WAYS if (axis, way) != ("decode steps", WAYS[2])]


def size_of(axis: str, point: Point) -> int:
    """Returns the position of a point on an axis."""
    return {
        "layers": point.layers,
        "tokens": point.tokens,
        "decode steps": point.decode_steps,
    }[axis]


def points_of(axis: str, way: str) -> list[Point]:
    """Returns the points of a curve."""
    points = [replace(point, way=way) for point in AXES[axis]]
    if way != "converted":
        return points
    return [point for point in points if size_of(axis, point) <= LARGEST_CONVERTED[axis]]


def measure(point: Point, folder: Path) -> Cost:
    """Checks the point in this process.

    Raises:
        SystemExit: the check does not pass, or it took another ``way``.
    """
    import torch

    from edgeverify.legs.memory_plan import plan_memory
    from edgeverify.legs.run import prepare
    from edgeverify.legs.selectors import Selectors
    from edgeverify.suites.check import verify
    from edgeverify_models.smollm import SMOLLM

    torch.set_num_threads(1)
    verify(SMOLLM, backends=("reference", "reauthored"), cache=folder / "warm")
    cut = {**SMOLLM.hf_configs["135m"], "num_hidden_layers": point.layers}
    port = replace(SMOLLM, name="smollm-cut", hf_configs={**SMOLLM.hf_configs, "cut": cut})
    chosen: dict[str, Any] = {
        "size": "cut",
        "backends": ("reference", "reauthored", "tflite")[: 3 if point.way == "converted" else 2],
        "prefill": (point.prefill, 2 * point.prefill),
        "decode_steps": point.decode_steps,
        "cache": folder / "cache",
    }
    if point.way == "streamed":
        run, _ = prepare(port, Selectors.of(**chosen), verbose=False, progress=None)
        plan = plan_memory(run, None)
        chosen["memory_budget"] = (plan.streamed + plan.whole) // 2
    start, busy = time.perf_counter(), time.process_time()
    report = verify(port, **chosen)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    way = report.environment["memory"]
    if not report.passed or ("streamed" in way) != (point.way == "streamed"):
        raise SystemExit(f"{point}: {report.outcome}; {way}")
    return Cost(seconds, busy, int(report.environment["peak_memory"]))


def in_a_process(point: Point) -> Cost:
    """Checks the point in its own process, with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.growth", "--folder", folder]
        command += ["--measure", json.dumps(asdict(point))]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{point}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


class Points:
    """The measurements, stored in a file if one is given, to which later runs can add."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._costs: dict[Point, list[Cost]] = {}
        if path is not None and path.exists():
            for entry in json.loads(path.read_text()):
                costs = [Cost(**cost) for cost in entry["costs"]]
                self._costs[Point(**entry["point"])] = costs

    def measure(self, point: Point, repeat: int) -> None:
        """Measures the point, unless it has already been measured ``repeat`` times."""
        costs = self._costs.setdefault(point, [])
        if len(costs) >= repeat:
            return
        costs.append(cost := in_a_process(point))
        print(
            f"  {point.way:10}{point.layers:3} layers {point.tokens:5} tokens {cost.seconds:7.1f} s"
            f"  processor {cost.busy:7.1f} s  {cost.memory / 1e9:5.2f} GB",
            flush=True,
        )
        if self._path is not None:
            told = [
                {"point": asdict(point), "costs": [asdict(cost) for cost in costs]}
                for point, costs in self._costs.items()
            ]
            self._path.write_text(json.dumps(told, indent=1) + "\n")

    def least(self, point: Point) -> Cost:
        """Returns the smallest value of each figure."""
        costs = self._costs[point]
        return Cost(
            min(c.seconds for c in costs), min(c.busy for c in costs), min(c.memory for c in costs)
        )

    def noise(self, points: Iterable[Point]) -> float:
        """The largest spread of a point's processor seconds, relative to the smallest of them."""
        busy = [[cost.busy for cost in self._costs[point]] for point in points]
        return max(max(costs) / min(costs) - 1 for costs in busy)

    def has(self, points: Iterable[Point]) -> bool:
        return all(self._costs.get(point) for point in points)


@dataclass(frozen=True)
class Told:
    """One line of the table."""

    axis: str
    way: str
    what: str
    costs: tuple[float, ...]
    sizes: tuple[int, ...]
    noise: float | None

    def __str__(self) -> str:
        line = fit(self.sizes, self.costs)
        noise = "" if self.noise is None else f"{self.noise:.0%}"
        return (
            f"{self.axis:13}{self.way:10}{self.what:17}{line.start:8.2f} + {line.slope:.4f} n"
            f"{line.r2:9.4f}{self.growth:9.2f}{noise:>8}"
        )

    @property
    def growth(self) -> float:
        return growth(self.sizes, self.costs)


def table(points: Points, axis: str, way: str) -> list[Told]:
    """Returns the lines of one curve: the clock, the processor, the memory."""
    chosen = points_of(axis, way)
    sizes = tuple(size_of(axis, point) for point in chosen)
    costs = [points.least(point) for point in chosen]
    noise = points.noise(chosen)
    return [
        Told(axis, way, "seconds", tuple(c.seconds for c in costs), sizes, None),
        Told(axis, way, "processor's s", tuple(c.busy for c in costs), sizes, noise),
        Told(axis, way, "GB at most", tuple(c.memory / 1e9 for c in costs), sizes, None),
    ]


def panels(told: Sequence[Told]) -> list[Panel]:
    """Returns a panel for each axis and for time and memory, with the points and their lines."""
    found = []
    for what, unit in (("processor's s", "processor seconds"), ("GB at most", "peak memory, GB")):
        for axis in AXES:
            lines = [line for line in told if line.axis == axis and line.what == what]
            curves = [Curve(t.way, t.sizes, t.costs, fit(t.sizes, t.costs)) for t in lines]
            if curves:
                found.append(Panel(axis, unit, tuple(curves)))
    return found


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", choices=[*AXES, *WAYS], metavar="CURVE")
    parser.add_argument("--repeat", type=int, default=2, help="times of each point (default: 2)")
    parser.add_argument("--points", type=Path, help="keep what was measured, and measure the rest")
    parser.add_argument("--svg", type=Path, help="draw the curves")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.measure:
        cost = measure(Point(**json.loads(options.measure)), options.folder)
        print(f"\n{json.dumps(asdict(cost))}")
        return 0
    only = options.only or [*AXES, *WAYS]
    axes = [axis for axis in AXES if axis in only] or list(AXES)
    ways = [way for way in WAYS if way in only] or list(WAYS)
    points = Points(options.points)
    for axis in axes:
        print(axis)
        for done in range(options.repeat):
            for way in ways:
                for point in points_of(axis, way) if (axis, way) in CURVES else ():
                    points.measure(point, done + 1)
    curves = [(a, w) for a, w in CURVES if points.has(points_of(a, w))]
    told = [line for axis, way in curves for line in table(points, axis, way)]
    print(f"\n{'n':13}{'':10}{'cost':17}{'line':>19}{'R²':>9}{'growth':>9}{'noise':>8}")
    for line in told:
        print(line)
    if options.svg:
        axes = {line.axis for line in told}
        options.svg.write_text(drawn(panels(told), columns=len(axes)))
    above = [line for line in told if line.what != "seconds" and line.growth > LIMIT]
    for line in above:
        print(f"{line.axis}, {line.way}, {line.what}: grows {line.growth:.2f}, allowed {LIMIT}")
    return 1 if above else 0


if __name__ == "__main__":
    raise SystemExit(main())
