"""Damages .tflite and .litertlm files in many ways, then inspects and runs each one, contained.

    python -m benchmarks.damaged_files FILE... [--count 500] [--seed 0] [--json FILE]

It prints the outcome of each: a verdict, a clear error, or an end of the child (a crash, a hang, an
exit), which the host reports as an error. The host itself must survive.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from benchmarks.damaging import damage, trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=500, help="damaged files (default: 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every trial to a file")
    options = parser.parse_args()

    start = time.perf_counter()
    ways = list(damage.plan(options.count, options.seed))
    found = list(trial.try_files(options.files, ways))
    took = time.perf_counter() - start

    outcomes = ("verdict", "error", "crash", "exit", "hang")
    for title, key in (
        ("task", lambda t: t.task),
        ("file", lambda t: Path(t.file).suffix),
        ("damage", lambda t: t.damage.kind),
    ):
        print(f"{title:26}" + "".join(f"{name:>9}" for name in outcomes))
        for name in dict.fromkeys(key(t) for t in found):
            counted = Counter(t.outcome for t in found if key(t) == name)
            print(f"{name:26}" + "".join(f"{counted[o]:9}" for o in outcomes))
        print()
    total = Counter(t.outcome for t in found)
    told = ", ".join(f"{total[name]} {name}" for name in outcomes)
    print(f"{options.count} damaged files, {len(found)} trials in {took:.0f} s: {told}")
    if options.json:
        options.json.write_text(json.dumps([asdict(t) for t in found], indent=1))


if __name__ == "__main__":
    main()
