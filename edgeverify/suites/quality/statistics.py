"""Compares a candidate's logits with the reference's at each position, and estimates figures.

This module uses only numpy. It takes a few rows of logits at a time, so only these are in float64:
at 49,152 ids and 3,686 positions all of them would be 1.4 GB a side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np

# Eight rows of 49,152 ids in float64 are 3 MB and stay in a core's cache: 3.0 ms a row instead of
# 4.1 ms with 128 rows.
CHUNK = 8
TOP = 5
# Neighbouring positions are not independent, and the dependence reaches far: for SmolLM2-135M in
# dynamic_int8 the standard error of the mean KL is 0.0008, 0.0010, 0.0012, 0.0015, 0.0017, 0.0017
# with blocks of 1, 8, 16, 32, 64, 128 positions. On lognormal series of 3,600 positions with
# correlations of 0, 0.3, 0.7, 95 % intervals contained the mean in 92 to 95 % of 300 series with
# blocks of 64, and in 90 to 94 % with blocks of 128, of which there are too few.
BLOCK = 64
# On 1,000 such series (correlation 0.3) of 4, 8, 16, 24, 32 blocks, 95 % intervals contained the
# mean in 78, 87, 92, 92, 94 %.
ENOUGH_BLOCKS = 16
# The ends of a 95 % interval vary between seeds by 1.6 % of its width (standard deviation over 20
# seeds); with 500 resamples by 3.2 %, with 4,000 by 0.8 %. 2,000 resamples take 0.1 s a file.
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Positions:
    """The measurements at each position, (N,) each.

    Attributes:
        kl: KL(reference ‖ candidate) of the next-token distributions, in nats; float64.
        nll: negative log-likelihood that the candidate gives the text's next token, in nats.
        top1: whether the candidate's likeliest token is the reference's.
        top5: the share of the reference's five likeliest tokens that are among the candidate's
            five.
    """

    kl: np.ndarray
    nll: np.ndarray
    top1: np.ndarray
    top5: np.ndarray

    @property
    def count(self) -> int:
        return len(self.kl)

    @property
    def finite(self) -> bool:
        """Whether every position could be measured: a NaN or ±inf logit spoils its own position."""
        return bool(np.isfinite(self.kl).all() and np.isfinite(self.nll).all())


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval; a maximum has no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Figures:
    """The figures of one file over all positions.

    Attributes:
        mean_kl, median_kl, p99_kl, max_kl: of KL(reference ‖ file), in nats.
        top1: share of positions whose likeliest token is the reference's.
        top5: mean share of the reference's five likeliest tokens that are among the file's five.
        perplexity: exp of the mean negative log-likelihood of the text.
        perplexity_se: its standard error, from the bootstrap.
        mean_kl_over_float: mean of KL minus the float file's KL, position by position.
        log_perplexity_over_float: the same for the negative log-likelihood, in nats.
    """

    mean_kl: Estimate
    median_kl: Estimate
    p99_kl: Estimate
    max_kl: Estimate
    top1: Estimate
    top5: Estimate
    perplexity: Estimate
    perplexity_se: float
    mean_kl_over_float: Estimate
    log_perplexity_over_float: Estimate

    def estimates(self) -> dict[str, Estimate]:
        """Returns the figures that have a value and may have an interval, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Estimate)}

    def to_dict(self) -> dict[str, object]:
        told = {name: estimate.to_dict() for name, estimate in self.estimates().items()}
        return {**told, "perplexity_se": self.perplexity_se}


def compare(reference: np.ndarray, candidate: np.ndarray, targets: np.ndarray) -> Positions:
    """Compares logits position by position; computes in float64.

    Args:
        reference: (T, V) logits, any float dtype.
        candidate: (T, V) logits.
        targets: (T,) the text's next token of each position.

    Raises:
        ValueError: the shapes differ, or there is no position.
    """
    if reference.shape != candidate.shape or len(targets) != len(reference) or not len(targets):
        raise ValueError(f"{reference.shape}, {candidate.shape} and {len(targets)} targets")
    parts = [
        _compare_chunk(reference[rows], candidate[rows], targets[rows])
        for rows in _chunks(len(targets))
    ]
    return join(parts)


def join(parts: list[Positions]) -> Positions:
    """Concatenates the positions of several parts."""
    names = [field.name for field in fields(Positions)]
    return Positions(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def nll(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the negative log-likelihood of each target, in nats: (T, V), (T,) → (T,) float64."""
    parts = []
    for rows in _chunks(len(targets)):
        centred, total = _exponentials(logits[rows])[0::2]
        parts.append(np.log(total) - centred[np.arange(len(centred)), targets[rows]])
    return np.concatenate(parts)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))


def _exponentials(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the logits minus their row's largest, their exponentials, and the rows' sums."""
    centred = logits.astype(np.float64)
    with np.errstate(all="ignore"):  # the caller reports what is not finite
        centred -= centred.max(axis=1, keepdims=True)
        powers = np.exp(centred)
        return centred, powers, powers.sum(axis=1)


def _compare_chunk(reference: np.ndarray, candidate: np.ndarray, targets: np.ndarray) -> Positions:
    ours, powers, total = _exponentials(reference)
    theirs, _, other_total = _exponentials(candidate)
    rows = np.arange(len(targets))
    own_nll = np.log(other_total) - theirs[rows, targets]
    with np.errstate(all="ignore"):
        # KL = sum p (log p - log q), with log p = ours - log total.
        ours -= theirs
        expected = np.einsum("tv,tv->t", powers, ours) / total
        kl = expected - np.log(total) + np.log(other_total)
    best, found = _top(reference), _top(candidate)
    common = (best[:, :, None] == found[:, None, :]).any(axis=2)
    return Positions(
        np.maximum(kl, 0.0),  # below zero only by rounding; NaN stays
        own_nll,
        best[:, 0] == found[:, 0],
        common.mean(axis=1),
    )


def _top(logits: np.ndarray) -> np.ndarray:
    """Returns the ids of the five largest logits of each row, (T, 5); ties go to the first id.

    Five searches for the maximum take 1/20 of the time of a partition.
    """
    left, rows = logits.copy(), np.arange(len(logits))
    found = np.empty((len(logits), min(TOP, logits.shape[1])), np.int64)
    for place in range(found.shape[1]):
        found[:, place] = left.argmax(axis=1)
        left[rows, found[:, place]] = -np.inf
    return found


@dataclass(frozen=True)
class Resamples:
    """Block bootstrap: how often each resample draws each block; every file uses the same draws.

    Attributes:
        block: (N,) the block of each position.
        drawn: (R, B) the number of draws.
    """

    block: np.ndarray
    drawn: np.ndarray

    @classmethod
    def of(
        cls, windows: np.ndarray, *, seed: int = 0, block: int = BLOCK, count: int = RESAMPLES
    ) -> Resamples:
        """Cuts the windows into blocks of about ``block`` positions and draws them.

        Args:
            windows: (N,) the window of each position, ascending; no block spans two windows.
            seed: seeds the draws.
            block: positions in a block; the rest at the end of a window joins its last block.
            count: how many resamples.
        """
        ids = np.empty(len(windows), np.int64)
        first = 0
        for window in np.unique(windows):
            own = np.flatnonzero(windows == window)
            blocks = max(1, len(own) // block)
            ids[own] = first + np.minimum(np.arange(len(own)) // block, blocks - 1)
            first += blocks
        drawn = np.random.default_rng(seed).multinomial(first, np.full(first, 1 / first), count)
        return cls(ids, drawn)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Returns the mean of ``values`` (N,) in each resample, (R,)."""
        blocks = self.drawn.shape[1]
        totals = np.bincount(self.block, values.astype(np.float64), blocks)
        sizes = np.bincount(self.block, minlength=blocks)
        return (self.drawn @ totals) / (self.drawn @ sizes)

    def quantile(self, values: np.ndarray, share: float) -> np.ndarray:
        """Returns ``quantile(values, share)`` of each resample's values, (R,)."""
        order = np.argsort(values)
        block, found = self.block[order], np.empty(len(self.drawn))
        for index, drawn in enumerate(self.drawn):
            weight = np.cumsum(drawn[block])
            found[index] = values[order[np.searchsorted(weight, share * weight[-1])]]
        return found


def quantile(values: np.ndarray, share: float) -> float:
    """Returns the smallest value that at least ``share`` of the values do not exceed."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def figures(own: Positions, float_file: Positions, resamples: Resamples) -> Figures:
    """Computes all figures of a file, each with its interval from the same resamples.

    Args:
        own: the file's positions.
        float_file: the float file's, at the same positions; paired with ``own``.
        resamples: see ``Resamples.of``.
    """

    def mean(values: np.ndarray) -> Estimate:
        return _estimate(float(values.mean()), resamples.mean(values))

    def kl_at(share: float) -> Estimate:
        return _estimate(quantile(own.kl, share), resamples.quantile(own.kl, share))

    perplexities = np.exp(resamples.mean(own.nll))
    return Figures(
        mean_kl=mean(own.kl),
        median_kl=kl_at(0.5),
        p99_kl=kl_at(0.99),
        # No resample exceeds the sample's largest value, so an interval would be wrong.
        max_kl=Estimate(float(own.kl.max())),
        top1=mean(own.top1),
        top5=mean(own.top5),
        perplexity=_estimate(float(np.exp(own.nll.mean())), perplexities),
        perplexity_se=float(perplexities.std()),
        mean_kl_over_float=mean(own.kl - float_file.kl),
        log_perplexity_over_float=mean(own.nll - float_file.nll),
    )


def perplexity(values: np.ndarray, resamples: Resamples) -> tuple[Estimate, float]:
    """Returns perplexity and its standard error from negative log-likelihoods (N,)."""
    drawn = np.exp(resamples.mean(values))
    return _estimate(float(np.exp(values.mean())), drawn), float(drawn.std())


def _estimate(value: float, drawn: np.ndarray) -> Estimate:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


NAMES: Mapping[str, str] = {
    "mean_kl": "mean KL(reference ‖ file), in nats",
    "median_kl": "median KL",
    "p99_kl": "KL that 99 % of the positions do not exceed",
    "max_kl": "largest KL",
    "top1": "share of positions with the reference's likeliest token",
    "top5": "mean share of the reference's five likeliest tokens among the file's five",
    "perplexity": "perplexity of the text",
    "mean_kl_over_float": "mean KL less the float file's",
    "log_perplexity_over_float": "log perplexity less the float file's",
}
