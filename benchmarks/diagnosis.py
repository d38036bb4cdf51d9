"""Measures how often the diagnosis names the true cause: ``python -m benchmarks.diagnosis``.

It runs every faulty port of ``tests/diagnose/faulty.py`` and prints the named causes. A fault
counts as wrongly named if any cause of another kind is claimed for it. For the faults that are on
no list, each claimed cause is wrong.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

from edgeverify.suites.check import verify
from tests.diagnose.faulty import FAULTS, UNKNOWN, verdict


def main() -> None:
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    slowest = 0.0
    wanted = sys.argv[1:]
    cases = [(name, *entry) for name, entry in FAULTS.items()]
    cases += [(name, make, set()) for name, make in UNKNOWN.items()]
    for name, make, kinds in cases:
        if wanted and not any(part in name for part in wanted):
            continue
        start = time.perf_counter()
        report = verify(make(), backends=("reference", "reauthored"))
        seconds = report.timings.get("diagnose", 0.0)
        slowest = max(slowest, seconds)
        came = verdict(report, kinds)
        counts[bool(kinds)][came] += 1
        print(f"{came:7}{name:38}{seconds:6.2f} s of {time.perf_counter() - start:.1f}", flush=True)
        for finding in report.findings:
            if finding.id.split(".")[1] in ("cause", "unexplained"):
                print(f"          {finding.cause or '-'}: {finding.message}")
        if report.passed:
            print("          not detected")
    print(f"\nknown faults: {dict(counts[True])}\nunknown faults: {dict(counts[False])}")
    print(f"slowest diagnosis: {slowest:.2f} s")


if __name__ == "__main__":
    main()
