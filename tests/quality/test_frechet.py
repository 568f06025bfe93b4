import itertools
import tracemalloc
from dataclasses import astuple

import numpy as np
import pytest
import scipy.linalg
from pytorch_fid.fid_score import calculate_frechet_distance
from scipy.stats import binom, chi2, ortho_group

from qcsbm.quality import frechet
from qcsbm.quality.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    frechet_estimate,
    influence,
)
from qcsbm.quality.order import by_content


def gaussian(mean, covariance):
    return FeatureStatistics(np.array(mean, dtype=float), np.array(covariance, dtype=float))


def correlated(rng, n, d):
    """Features (n, d) of a Gaussian with a dense covariance of full rank."""
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d)


def test_statistics_are_numpy_s_mean_and_unbiased_covariance():
    features = correlated(np.random.default_rng(0), 50, 4).astype(np.float32)
    statistics = feature_statistics(features)
    assert statistics.covariance.dtype == np.float64
    x = features.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(statistics.covariance, np.cov(x, rowvar=False), rtol=1e-12)


def test_statistics_refuse_one_feature_and_values_that_are_not_finite(monkeypatch):
    monkeypatch.setattr(frechet, "BLOCK", 3)
    with pytest.raises(ValueError, match="found 1 of them, expected at least 2"):
        feature_statistics(np.zeros((1, 3)))
    for row, value in itertools.product(range(4), (np.nan, np.inf)):
        features = np.zeros((4, 3))
        features[row, 1] = value
        with pytest.raises(ValueError, match="not finite"):
            feature_statistics(features)


def jackknife(features, a, b):
    """Standard error of the extrapolated distance: that of the mean of the influences."""
    return influence(features, a, b).std(ddof=1) / np.sqrt(len(features))


def test_blocks_change_neither_statistics_nor_influence(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = (correlated(rng, 301, 6).astype(np.float32) for _ in range(2))
    a, b = feature_statistics(x), feature_statistics(y)
    error = jackknife(x, a, b)
    for block in (1, 7, 300):
        monkeypatch.setattr(frechet, "BLOCK", block)
        blockwise = feature_statistics(x)
        # Sums of 301 terms in another order.
        np.testing.assert_array_equal(blockwise.mean, a.mean)
        np.testing.assert_allclose(blockwise.covariance, a.covariance, rtol=1e-13, atol=1e-13)
        assert jackknife(x, a, b) == pytest.approx(error, rel=1e-13)


def test_features_are_never_held_in_float64_as_a_whole(monkeypatch):
    x = np.random.default_rng(0).standard_normal((20000, 32), dtype=np.float32)
    b = gaussian(np.ones(32), np.eye(32))
    monkeypatch.setattr(frechet, "BLOCK", 500)
    tracemalloc.start()
    try:
        jackknife(x, feature_statistics(x), b)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The influence of each, before and after it is joined and centred, and blocks of 125 KiB; a
    # copy of the features in float64 would be 8 a feature and dimension.
    assert peak < 4 * 8 * 20000 + 5 * 8 * 500 * 32 < x.size * 8 / 3


def test_distance_of_commuting_gaussians_is_the_closed_form():
    # |m1 - m2|^2 + sum (sqrt(a_i) - sqrt(b_i))^2 = 9 + 16 + 1 + 4
    a = gaussian([0, 0], np.diag([4, 9]))
    b = gaussian([3, 4], np.diag([1, 25]))
    assert frechet_distance(a, b) == pytest.approx(30, rel=1e-14)


def test_distance_of_non_commuting_gaussians_agrees_with_the_matrix_square_root():
    a = gaussian([1, -2], [[2, 1], [1, 3]])
    b = gaussian([0, 1], [[5, -2], [-2, 1]])
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    expected = 1 + 9 + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root).real
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_distance_agrees_with_pytorch_fid_on_the_same_features():
    rng = np.random.default_rng(0)
    x, y = correlated(rng, 500, 64), correlated(rng, 300, 64)
    a, b = feature_statistics(x), feature_statistics(y)
    peer = calculate_frechet_distance(
        x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False)
    )
    # The peer's square root of a non-symmetric product loses half the digits of its condition.
    assert frechet_distance(a, b) == pytest.approx(peer, rel=1e-8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_distance_agrees_with_pytorch_fid_where_eigenvalues_span_twelve_decades():
    # As those of a network's features do; N = 5 D.
    rng = np.random.default_rng(0)
    d = 64
    mixing = ortho_group.rvs(d, random_state=0) * np.logspace(0, -6, d)
    x, y = (scale * rng.standard_normal((5 * d, d)) @ mixing.T for scale in (1, 1.5))
    a, b = feature_statistics(x), feature_statistics(y)
    assert np.linalg.cond(a.covariance) > 1e11
    peer = calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    # Roots of the peer's smallest eigenvalues, rounding errors of 1e-16, are wrong by 1e-8 each.
    assert frechet_distance(a, b) == pytest.approx(peer, rel=1e-6)


def test_distance_is_symmetric_and_invariant_under_rotation_and_shift():
    rng = np.random.default_rng(0)
    x, y = correlated(rng, 200, 16), correlated(rng, 200, 16)
    distance = frechet_distance(feature_statistics(x), feature_statistics(y))
    back = frechet_distance(feature_statistics(y), feature_statistics(x))
    rotation = ortho_group.rvs(16, random_state=0)
    moved = frechet_distance(
        feature_statistics(x @ rotation + 5), feature_statistics(y @ rotation + 5)
    )
    assert back == pytest.approx(distance, rel=1e-12)
    assert moved == pytest.approx(distance, rel=1e-11)


@pytest.mark.parametrize("n", [10, 200])  # rank deficient and of full rank
def test_distance_to_itself_is_zero(n):
    a = feature_statistics(correlated(np.random.default_rng(0), n, 32))
    # Rounding of D singular values of at most the trace each.
    assert 0 <= frechet_distance(a, a) < 32 * 1e-15 * np.trace(a.covariance)


def embedded(rng, n, r, d):
    """Features (n, r), and the same in a random r-dimensional subspace of R^d."""
    x = correlated(rng, n, r)
    return x, x @ ortho_group.rvs(d, random_state=0)[:r]


def test_distance_of_rank_deficient_covariances_is_that_in_their_subspace():
    rng = np.random.default_rng(0)
    x, x_embedded = embedded(rng, 200, 5, 40)
    y, y_embedded = embedded(rng, 200, 5, 40)
    expected = frechet_distance(feature_statistics(x), feature_statistics(y))
    distance = frechet_distance(feature_statistics(x_embedded), feature_statistics(y_embedded))
    # Null eigenvalues are rounding errors of 1e-16 of the largest; their roots are 1e-8 of it.
    assert distance == pytest.approx(expected, rel=1e-7)


def test_fewer_features_than_dimensions_still_measure_the_mean_and_a_full_covariance():
    # Of S1 = 4 e1 e1^T and S2 = I: 4 + D - 2 * 2.
    d = 30
    a = gaussian(np.zeros(d), np.diag([4.0] + [0.0] * (d - 1)))
    b = gaussian(np.full(d, 2.0), np.eye(d))
    assert frechet_distance(a, b) == pytest.approx(4 * d + 4 + d - 4, rel=1e-12)


def test_distance_of_a_singular_gaussian_in_a_rotated_subspace_is_the_closed_form():
    # The symmetric root of a null eigenvalue, a rounding error of 1e-16, would be 1e-8.
    d, r = 60, 20
    rotation = ortho_group.rvs(d, random_state=0)
    variances = np.where(np.arange(d) < r, 4.0, 0.0)
    a = gaussian(np.zeros(d), rotation * variances @ rotation.T)
    b = gaussian(np.zeros(d), np.eye(d))
    for distance in (frechet_distance(a, b), frechet_distance(b, a)):
        assert distance == pytest.approx(4 * r + d - 2 * 2 * r, rel=1e-13)


def test_constant_features_have_the_distance_of_a_point():
    a, b = feature_statistics(np.ones((5, 3))), gaussian([1, 1, 4], np.diag([1, 2, 3]))
    assert frechet_distance(a, b) == frechet_distance(b, a) == 9 + 6
    assert jackknife(np.ones((5, 3)), a, b) == 0


SCALES = np.logspace(0, -1.5, 32)  # standard deviations of features, as unequal as a network's


def draw(rng, n, shift, heavy_tails):
    """Features (n, 32) with known moments, see `truth`."""
    z = rng.laplace(size=(n, 32)) / 2**0.5 if heavy_tails else rng.standard_normal((n, 32))
    return SCALES * z + shift


def truth(shift):
    """The distance of infinitely many features of `draw` to a reference, and that reference."""
    a, b = (gaussian(np.full(32, m), np.diag(s * SCALES**2)) for m, s in ((shift, 1), (0, 1.3)))
    return frechet_distance(a, b), b


@pytest.mark.parametrize("heavy_tails", [False, True])
@pytest.mark.parametrize("shift", [0.0, 0.3])  # the bias is 3 and 0.8 standard deviations
def test_errors_are_the_spread_of_draws_and_the_extrapolation_has_no_bias(shift, heavy_tails):
    rng = np.random.default_rng(0)
    n, repeats = 512, 300
    expected, b = truth(shift)
    estimates = [frechet_estimate(draw(rng, n, shift, heavy_tails), b) for _ in range(repeats)]
    distance, stderr, infinity, infinity_stderr = np.array(
        [(e.distance, e.stderr, e.infinity, e.infinity_stderr) for e in estimates]
    ).T
    # (R - 1) s^2 / sigma^2 is chi-square for a normal statistic; 1e-4 on each side, and 10 % for
    # what is of third order (D / n = 1 / 16).
    low, high = np.sqrt(chi2.ppf([1e-4, 1 - 1e-4], repeats - 1) / (repeats - 1))
    covered = binom.ppf([1e-4, 1 - 1e-4], repeats, 0.95) / repeats
    for values, errors, centre in (
        (distance, stderr, distance.mean()),
        (infinity, infinity_stderr, expected),
    ):
        ratio = values.std(ddof=1) / np.sqrt(np.mean(errors**2))
        assert 0.9 * low < ratio < 1.1 * high
        # An error that is estimated, and a skewed statistic, cost 2 %.
        share = np.mean(np.abs(values - centre) < 1.96 * errors)
        assert covered[0] - 0.02 < share < covered[1]
    bias = (distance.mean() - expected) / distance.std(ddof=1)
    left = (infinity.mean() - expected) / infinity.std(ddof=1)
    assert abs(left) < 0.1 + 4 / np.sqrt(repeats) < 0.5 < bias


def test_extrapolation_is_that_of_two_halves_and_its_errors_those_of_influences():
    x, b = draw(np.random.default_rng(0), 100, 0.3, heavy_tails=True), truth(0.3)[1]
    estimate = frechet_estimate(x, b)
    halves = [x[half] for half in (by_content(x)[::2], by_content(x)[1::2])]
    parts = [feature_statistics(half) for half in halves]
    distances = [frechet_distance(part, b) for part in parts]
    assert estimate.distance == frechet_distance(feature_statistics(x), b)
    expected = 2 * estimate.distance - (distances[0] + distances[1]) / 2
    assert estimate.infinity == pytest.approx(expected, rel=1e-12)
    assert estimate.infinity_stderr == pytest.approx(jackknife(x, feature_statistics(x), b))
    covariances = [np.cov(*(influence(half, p, b) for p in parts))[0, 1] for half in halves]
    of_singles = np.mean(covariances) / 100
    assert 0 < of_singles < estimate.infinity_stderr**2
    variance = (estimate.infinity_stderr**2 + of_singles) / 2
    assert estimate.stderr == pytest.approx(variance**0.5, rel=1e-12)


def test_estimate_does_not_depend_on_the_order_of_features():
    rng = np.random.default_rng(0)
    x, b = correlated(rng, 101, 6).astype(np.float32), gaussian(np.zeros(6), np.eye(6))
    estimate = frechet_estimate(x, b)
    for _ in range(3):
        # Sums of 101 terms in another order.
        assert astuple(frechet_estimate(rng.permutation(x), b)) == pytest.approx(
            astuple(estimate), rel=1e-11
        )


def test_estimate_of_fewer_features_than_dimensions_is_finite_and_of_three_is_refused():
    rng = np.random.default_rng(0)
    x, b = correlated(rng, 20, 30), gaussian(np.zeros(30), np.eye(30))
    estimate = frechet_estimate(x, b)
    assert np.isfinite(astuple(estimate)).all() and 0 < estimate.stderr <= estimate.infinity_stderr
    assert estimate.infinity < estimate.distance
    with pytest.raises(ValueError, match="found 3 of them, expected at least 4"):
        frechet_estimate(x[:3], b)


def test_influence_in_one_dimension_is_the_closed_form():
    # d^2 = (m1 - m2)^2 + (s1 - s2)^2, so IF(x) = 2 (m1 - m2)(x - m1) + (1 - s2 / s1)(x - m1)^2.
    x = np.random.default_rng(0).gamma(2.0, size=(100, 1))
    a, b = feature_statistics(x), gaussian([1.0], [[0.25]])
    c = x[:, 0] - x.mean()
    influence = 2 * (x.mean() - 1) * c + (1 - 0.5 / x.std(ddof=1)) * c**2
    expected = influence.std(ddof=1) / 10
    assert jackknife(x, a, b) == pytest.approx(expected, rel=1e-12)


def test_influence_of_features_in_a_subspace_is_that_inside_it():
    rng = np.random.default_rng(0)
    x, x_embedded = embedded(rng, 200, 5, 40)
    y, y_embedded = embedded(rng, 200, 5, 40)
    expected = jackknife(x, feature_statistics(x), feature_statistics(y))
    a, b = feature_statistics(x_embedded), feature_statistics(y_embedded)
    assert jackknife(x_embedded, a, b) == pytest.approx(expected, rel=1e-6)


def test_influence_ignores_what_the_reference_varies_by_outside_the_features_span():
    # The transport from a singular Gaussian sees the reference only through S1^1/2 S2 S1^1/2.
    rng = np.random.default_rng(0)
    x, x_embedded = embedded(rng, 200, 5, 40)
    y = correlated(rng, 300, 40)
    a, b = feature_statistics(x_embedded), feature_statistics(y)
    basis = ortho_group.rvs(40, random_state=0)[:5]
    b_inside = FeatureStatistics(basis @ b.mean, basis @ b.covariance @ basis.T)
    expected = jackknife(x, feature_statistics(x), b_inside)
    assert jackknife(x_embedded, a, b) == pytest.approx(expected, rel=1e-6)


def test_influence_does_not_depend_on_constant_features():
    # Units of a network that never fire.
    rng = np.random.default_rng(0)
    x, y = correlated(rng, 200, 5), correlated(rng, 200, 5)
    padded = [np.pad(z, ((0, 0), (0, 3))) for z in (x, y)]
    expected = jackknife(x, feature_statistics(x), feature_statistics(y))
    error = jackknife(padded[0], *(feature_statistics(z) for z in padded))
    assert error == pytest.approx(expected, rel=1e-9)
