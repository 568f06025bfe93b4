"""The kernel distance: against brute force, and on Gaussians, for which it is known."""

import tracemalloc
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import binom, chi2

from qcsbm.quality import distances
from qcsbm.quality.frechet import feature_statistics, frechet_estimate
from qcsbm.quality.kernel_distance import kernel_distance


def kernel(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def different(k):
    """The mean of a square matrix without its diagonal."""
    return k[~np.eye(len(k), dtype=bool)].mean()


def by_definition(x, y):
    return different(kernel(x, x)) + different(kernel(y, y)) - 2 * kernel(x, y).mean()


class Gaussian:
    def __init__(self, mean, covariance):
        self.mean, self.covariance = mean, covariance
        self.factor = np.linalg.cholesky(covariance)

    def draw(self, rng, n):
        return self.mean + rng.standard_normal((n, len(self.mean))) @ self.factor.T

    def to_points(self, y):
        """E k(x, y) for each y (n, d): the third moment of 1 + xᵀy/d, which is normal."""
        d = len(self.mean)
        a, variance = 1 + y @ self.mean / d, np.einsum("nd,de,ne->n", y, self.covariance, y) / d**2
        return a**3 + 3 * a * variance

    def to(self, other):
        """E k(x, y): the mean of `to_points` over y, by Gaussian moments."""
        d, m, s = len(self.mean), self.mean, self.covariance
        a, spread = 1 + m @ other.mean / d, m @ other.covariance @ m / d**2
        variance = (np.trace(s @ other.covariance) + other.mean @ s @ other.mean) / d**2
        with_mean = 2 * m @ other.covariance @ s @ other.mean / d**3
        return a**3 + 3 * a * spread + 3 * (a * variance + with_mean)


def gaussians(d, shift, scale):
    """One with positive means, as features have them, and one beside it."""
    rng = np.random.default_rng(7)
    a = rng.standard_normal((d, d)) / d**0.5
    mean, covariance = np.abs(rng.standard_normal(d)), a @ a.T + 0.1 * np.eye(d)
    return Gaussian(mean + shift, scale**2 * covariance), Gaussian(mean, covariance)


@pytest.mark.parametrize("m, n, d", [(4, 2, 1), (30, 50, 6), (257, 90, 40)])
@pytest.mark.parametrize("block", [2048, 37, 64])
def test_distance_is_the_mean_over_all_pairs(monkeypatch, m, n, d, block):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((m, d)), rng.normal(0.3, 1.2, (n, d))
    expected = by_definition(x, y)
    whole = kernel_distance(x, y)
    assert whole.value == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(distances, "BLOCK", block)
    found = kernel_distance(rng.permutation(x), rng.permutation(y))
    assert found == pytest.approx(whole, rel=1e-10)


def test_features_are_multiplied_in_double_precision():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(m, 1, (40, 9)).astype(np.float32) for m in (3.0, 3.1))
    expected = by_definition(x.astype(float), y.astype(float))
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=1e-10)
    assert by_definition(x, y) != pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("seed, first_order", [(0, True), (1, False)])
def test_variance_is_that_of_its_definition_over_all_choices_of_samples(seed, first_order):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(3.0 * first_order, 1, (7, 3)), rng.standard_normal((900, 3))
    to_y = kernel(x, y).mean(1)
    h = kernel(x, x) - to_y[:, None] - to_y + different(kernel(y, y))
    same = np.mean([h[i, j] ** 2 for i, j in permutations(range(7), 2)])
    shared = np.mean([h[i, j] * h[i, k] for i, j, k in permutations(range(7), 3)])
    none = np.mean([h[i, j] * h[k, m] for i, j, k, m in permutations(range(7), 4)])
    assert (shared > none) == first_order and same > none
    variance = (4 * 5 * max(shared - none, 0) + 2 * (same - none)) / (7 * 6)
    found = kernel_distance(x, y)
    assert found == pytest.approx((different(h), variance**0.5), rel=1e-10)
    if first_order:
        # Without clipping, the variance is the square minus an unbiased estimate of its mean.
        assert variance == pytest.approx(found.value**2 - none, rel=1e-9)


@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (0.2, 1.0), (0.0, 0.8)])
def test_distance_has_the_population_value_as_its_mean_where_the_frechet_distance_is_biased(
    shift, scale
):
    a, b = gaussians(24, shift, scale)
    truth = a.to(a) + b.to(b) - 2 * a.to(b)
    assert a.to(b) == pytest.approx(b.to(a))
    rng = np.random.default_rng(0)
    draws = [(a.draw(rng, 60), b.draw(rng, 90)) for _ in range(400)]
    values = np.array([kernel_distance(*pair).value for pair in draws])
    error = values.std(ddof=1) / 20
    assert abs(values.mean() - truth) < 4 * error
    # What the pairs of a sample with itself would add would be seen.
    assert np.trace(kernel(draws[0][0], draws[0][0])) / 60**2 > 8 * error
    if (shift, scale) == (0.0, 1.0):
        frechet = [frechet_estimate(x, feature_statistics(y)).distance for x, y in draws[:50]]
        assert np.mean(frechet) > 5 * np.std(frechet) and (values < 0).any()


@pytest.mark.parametrize("m, n, shift, scale", [(150, 400, 0.3, 1.0), (300, 100, 0.0, 0.7)])
def test_error_is_the_spread_of_draws_of_samples_and_covers_the_truth(m, n, shift, scale):
    a, b = gaussians(24, shift, scale)
    rng = np.random.default_rng(1)
    y, repeats = b.draw(rng, n), 400
    truth = a.to(a) + different(kernel(y, y)) - 2 * a.to_points(y).mean()
    values, errors = np.array([kernel_distance(a.draw(rng, m), y) for _ in range(repeats)]).T
    assert abs(values.mean() - truth) < 4 * values.std() / repeats**0.5
    # (R - 1) s^2 / sigma^2 is chi-square for a normal statistic; 1e-4 on each side.
    low, high = np.sqrt(chi2.ppf([1e-4, 1 - 1e-4], repeats - 1) / (repeats - 1))
    assert low < values.std(ddof=1) / np.sqrt(np.mean(errors**2)) < high
    within = binom.ppf([1e-4, 1 - 1e-4], repeats, 0.95) / repeats
    assert within[0] <= np.mean(np.abs(values - truth) < 1.96 * errors) <= within[1]


def test_error_near_the_reference_is_that_of_pairs():
    a, b = gaussians(24, 0.0, 1.0)
    rng = np.random.default_rng(1)
    y, repeats = b.draw(rng, 1000), 400
    values, errors = np.array([kernel_distance(a.draw(rng, 60), y) for _ in range(repeats)]).T
    # Counting the first order as 0 where it is estimated below makes the error somewhat large, by
    # less than a fifth. The jackknife's would be 1.4 times too large, as it counts pairs twice.
    ratio = np.sqrt(np.mean(errors**2)) / values.std(ddof=1)
    low, high = np.sqrt(chi2.ppf([1e-4, 1 - 1e-4], repeats - 1) / (repeats - 1))
    assert 1 / high < ratio < 1.2 / low
    assert np.mean(np.abs(values - values.mean()) < 1.96 * errors) > 0.9


def test_no_matrix_of_pairs_and_no_float64_features_are_held_whole(monkeypatch):
    n, d = 2000, 1024  # pairs of 31 MiB; features of 8 MiB, 16 in float64
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((n, d), dtype=np.float32) for _ in range(2))
    monkeypatch.setattr(distances, "BLOCK", 250)
    tracemalloc.start()
    try:
        kernel_distance(x, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Two blocks of features and a few of products.
    assert peak < 7 * 2**20


def test_too_few_features_are_refused():
    x = np.eye(4)
    with pytest.raises(ValueError, match="found 3 of samples and 4 of the reference"):
        kernel_distance(x[:3], x)
    with pytest.raises(ValueError, match="and 1 of the reference, expected at least 4 and 2"):
        kernel_distance(x, x[:1])
