"""Questions answered with legs: check, goldens, invariants, quality, bench, selftest, nightly."""
