"""Figures against a straightforward float64 computation, against known cases, and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeverify.suites.quality import statistics
from edgeverify.suites.quality.statistics import Positions, Resamples, compare, figures

POSITIONS, IDS = 37, 211


def logits(seed: int, scale: float = 4.0) -> np.ndarray:
    shape = (POSITIONS, IDS)
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row.astype(np.float64) - row.max())
    return powers / powers.sum()


TARGETS = np.random.default_rng(7).integers(0, IDS, POSITIONS)


def test_every_figure_is_that_of_a_plain_float64_computation() -> None:
    reference, candidate = logits(0), logits(0) + logits(1, 0.5)
    found = compare(reference, candidate, TARGETS)
    for position in range(POSITIONS):
        p, q = softmax(reference[position]), softmax(candidate[position])
        assert found.kl[position] == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-12)
        assert found.nll[position] == pytest.approx(-math.log(q[TARGETS[position]]), rel=1e-12)
        assert found.top1[position] == (p.argmax() == q.argmax())
        common = set(np.argsort(p)[-5:]) & set(np.argsort(q)[-5:])
        assert found.top5[position] == len(common) / 5


def test_a_distribution_has_no_divergence_from_itself() -> None:
    found = compare(logits(0), logits(0), TARGETS)
    assert (found.kl == 0).all()
    assert found.top1.all()
    assert (found.top5 == 1).all()


def test_a_constant_added_to_the_logits_changes_nothing() -> None:
    found = compare(logits(0), logits(0) + np.float32(2.0), TARGETS)
    assert found.kl.max() < 1e-12


def test_large_logits_do_not_overflow() -> None:
    reference, candidate = 1e4 * logits(0), 1e4 * logits(1)
    assert compare(reference, candidate, TARGETS).finite


def test_the_perplexity_of_a_uniform_guess_is_the_number_of_ids() -> None:
    found = compare(logits(0), np.zeros((POSITIONS, IDS), np.float32), TARGETS)
    resamples = Resamples.of(np.zeros(POSITIONS, int))
    perplexity, error = statistics.perplexity(found.nll, resamples)
    assert perplexity.value == pytest.approx(IDS, rel=1e-12)
    assert error < 1e-9


def test_the_references_own_likelihood_is_that_of_a_comparison_with_itself() -> None:
    own = statistics.nll(logits(0), TARGETS)
    assert np.array_equal(own, compare(logits(0), logits(0), TARGETS).nll)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_noticed(bad: float) -> None:
    candidate = logits(0)
    candidate[5, 3] = bad
    found = compare(logits(0), candidate, TARGETS)
    assert not found.finite
    assert np.isfinite(np.delete(found.kl, 5)).all()


def test_equal_logits_take_the_first_id() -> None:
    flat = np.zeros((1, 8), np.float32)
    assert statistics._top(flat).tolist() == [[0, 1, 2, 3, 4]]


def test_fewer_than_five_ids_are_all_among_the_likeliest() -> None:
    found = compare(np.array([[1.0, 2.0]]), np.array([[2.0, 1.0]]), np.array([0]))
    assert found.top5.tolist() == [1.0]
    assert found.top1.tolist() == [False]


@pytest.mark.parametrize(("other", "targets"), [((36, IDS), 36), ((37, 210), 37), ((37, IDS), 0)])
def test_what_does_not_fit_is_refused(other: tuple[int, int], targets: int) -> None:
    with pytest.raises(ValueError, match="targets"):
        compare(logits(0), np.zeros(other, np.float32), TARGETS[:targets])


def windows_of(count: int, length: int) -> np.ndarray:
    return np.arange(count) // length


def positions(kl: np.ndarray, nll: np.ndarray | None = None) -> Positions:
    own = np.ones(len(kl)) if nll is None else nll
    return Positions(kl, own, np.ones(len(kl), bool), np.ones(len(kl)))


def test_no_block_spans_two_windows_and_the_rest_joins_the_last() -> None:
    block = Resamples.of(windows_of(300, 128), block=32).block
    assert np.bincount(block).tolist() == [32, 32, 32, 32, 32, 32, 32, 32, 44]
    assert (block[:128] < 4).all()
    assert (block[128:] >= 4).all()


def test_a_resampled_mean_and_quantile_are_those_of_the_values_drawn() -> None:
    values = np.random.default_rng(0).lognormal(size=200)
    resamples = Resamples.of(windows_of(200, 50), block=25, count=20)
    means, medians = resamples.mean(values), resamples.quantile(values, 0.5)
    for index, drawn in enumerate(resamples.drawn):
        sample = np.repeat(values, drawn[resamples.block])
        assert means[index] == pytest.approx(sample.mean(), rel=1e-12)
        assert medians[index] == np.quantile(sample, 0.5, method="inverted_cdf")


def test_files_are_paired_by_the_same_resamples() -> None:
    """What two files have in common is not in the interval of their difference."""
    rng = np.random.default_rng(0)
    common = rng.lognormal(0, 2, 1024)
    resamples = Resamples.of(windows_of(1024, 128))
    found = figures(positions(common + 0.01), positions(common), resamples)
    difference = found.mean_kl_over_float
    assert difference.low == pytest.approx(0.01)
    assert difference.high == pytest.approx(0.01)
    assert (found.mean_kl.high or 0) - (found.mean_kl.low or 0) > 1


def test_the_largest_has_no_interval_and_is_the_largest() -> None:
    values = np.arange(256.0)
    found = figures(positions(values), positions(values), Resamples.of(windows_of(256, 128)))
    assert found.max_kl == statistics.Estimate(255.0)
    assert found.median_kl.value == 127.0
    assert found.p99_kl.value == 253.0


def series(count: int, length: int, correlation: float) -> np.ndarray:
    """Lognormal series (count, length) whose logarithms are an AR(1) process; mean exp(1/2)."""
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((count, length))
    logs = noise.copy()
    for index in range(1, length):
        step = math.sqrt(1 - correlation**2) * noise[:, index]
        logs[:, index] = correlation * logs[:, index - 1] + step
    return np.exp(logs)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.7])
def test_the_interval_covers_what_it_says(correlation: float) -> None:
    """Of 200 series, 95 % should: between 90 % and 99 % (two-sided limits of 3 standard errors).

    A bootstrap of single positions covers the mean in 65 % of them at a correlation of 0.7.
    """
    drawn = series(200, 3600, correlation)
    resamples = Resamples.of(windows_of(3600, 128), count=500)
    covered = {"mean": 0, "median": 0}
    for values in drawn:
        estimates = {
            "mean": (statistics._estimate(values.mean(), resamples.mean(values)), math.exp(0.5)),
        }
        if correlation == 0.3:
            own = statistics._estimate(1.0, resamples.quantile(values, 0.5))
            estimates["median"] = (own, 1.0)
        for name, (found, truth) in estimates.items():
            assert found.low is not None
            assert found.high is not None
            covered[name] += found.low <= truth <= found.high
    assert 180 <= covered["mean"] <= 198
    if correlation == 0.3:
        assert 180 <= covered["median"] <= 198


def test_so_many_resamples_are_enough() -> None:
    """Another seed moves an end of the interval by less than 3 % of its width."""
    values = series(1, 3600, 0.3)[0]
    ends = []
    for seed in range(8):
        found = statistics._estimate(
            0.0, Resamples.of(windows_of(3600, 128), seed=seed).mean(values)
        )
        ends.append([found.low, found.high])
    low, high = np.array(ends, float).T
    width = float((high - low).mean())
    assert max(low.std(), high.std()) < 0.03 * width


def test_the_same_seed_gives_the_same_draws() -> None:
    one, two = (Resamples.of(windows_of(500, 128), seed=5) for _ in range(2))
    assert np.array_equal(one.drawn, two.drawn)


def test_a_files_perplexity_is_that_of_its_likelihoods() -> None:
    likelihoods = np.random.default_rng(2).lognormal(size=256)
    resamples = Resamples.of(windows_of(256, 128))
    own = positions(np.ones(256), likelihoods)
    found = figures(own, positions(np.ones(256)), resamples)
    assert found.perplexity.value == pytest.approx(math.exp(likelihoods.mean()), rel=1e-12)
    assert (found.perplexity, found.perplexity_se) == statistics.perplexity(likelihoods, resamples)
    assert found.log_perplexity_over_float.value == pytest.approx(likelihoods.mean() - 1)
