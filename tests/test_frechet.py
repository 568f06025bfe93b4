import tracemalloc

import numpy as np
import pytest
import scipy.linalg
from pytorch_fid.fid_score import calculate_frechet_distance
from scipy.stats import chi2, ortho_group

from qcsbm.metrics import frechet
from qcsbm.metrics.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    frechet_standard_error,
)


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


def test_statistics_refuse_one_feature_and_values_that_are_not_finite():
    with pytest.raises(ValueError, match="found 1 of them, expected at least 2"):
        feature_statistics(np.zeros((1, 3)))
    for value in (np.nan, np.inf):
        features = np.zeros((4, 3))
        features[2, 1] = value
        with pytest.raises(ValueError, match="not finite"):
            feature_statistics(features)


def test_blocks_change_neither_statistics_nor_standard_error(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = (correlated(rng, 301, 6).astype(np.float32) for _ in range(2))
    a, b = feature_statistics(x), feature_statistics(y)
    error = frechet_standard_error(x, a, b)
    for block in (1, 7, 300):
        monkeypatch.setattr(frechet, "BLOCK", block)
        blockwise = feature_statistics(x)
        # Sums of 301 terms in another order.
        np.testing.assert_array_equal(blockwise.mean, a.mean)
        np.testing.assert_allclose(blockwise.covariance, a.covariance, rtol=1e-13, atol=1e-13)
        assert frechet_standard_error(x, a, b) == pytest.approx(error, rel=1e-13)


def test_features_are_never_held_in_float64_as_a_whole(monkeypatch):
    x = np.random.default_rng(0).standard_normal((20000, 32), dtype=np.float32)
    b = gaussian(np.ones(32), np.eye(32))
    monkeypatch.setattr(frechet, "BLOCK", 500)
    tracemalloc.start()
    try:
        frechet_standard_error(x, feature_statistics(x), b)
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
    assert frechet_standard_error(np.ones((5, 3)), a, b) == 0


def draws_and_errors(draw, b, repeats):
    """Distances to ``b`` of independent draws of features, and their standard errors."""
    distances, errors = [], []
    for _ in range(repeats):
        x = draw()
        a = feature_statistics(x)
        distances.append(frechet_distance(a, b))
        errors.append(frechet_standard_error(x, a, b))
    return np.array(distances), np.array(errors)


@pytest.mark.parametrize("heavy_tails", [False, True])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_standard_error_is_the_spread_of_independent_draws(heavy_tails, shift):
    rng = np.random.default_rng(0)
    d, n, repeats = 4, 1000, 400
    mixing = rng.standard_normal((d, d))
    b = gaussian(np.full(d, shift), 0.3 * np.eye(d) + 0.1)

    def draw():
        z = rng.laplace(size=(n, d)) if heavy_tails else rng.standard_normal((n, d))
        return z @ mixing

    distances, errors = draws_and_errors(draw, b, repeats)
    # (R - 1) s^2 / sigma^2 is chi-square for a normal statistic; 1e-4 on each side, and 3 % for
    # the terms of order 1 / N that a linearisation leaves out.
    low, high = np.sqrt(chi2.ppf([1e-4, 1 - 1e-4], repeats - 1) / (repeats - 1))
    ratio = distances.std(ddof=1) / np.sqrt(np.mean(errors**2))
    assert low - 0.03 < ratio < high + 0.03


def test_standard_error_in_one_dimension_is_the_closed_form():
    # d^2 = (m1 - m2)^2 + (s1 - s2)^2, so IF(x) = 2 (m1 - m2)(x - m1) + (1 - s2 / s1)(x - m1)^2.
    x = np.random.default_rng(0).gamma(2.0, size=(100, 1))
    a, b = feature_statistics(x), gaussian([1.0], [[0.25]])
    c = x[:, 0] - x.mean()
    influence = 2 * (x.mean() - 1) * c + (1 - 0.5 / x.std(ddof=1)) * c**2
    expected = influence.std(ddof=1) / 10
    assert frechet_standard_error(x, a, b) == pytest.approx(expected, rel=1e-12)


def test_standard_error_of_features_in_a_subspace_is_that_inside_it():
    rng = np.random.default_rng(0)
    x, x_embedded = embedded(rng, 200, 5, 40)
    y, y_embedded = embedded(rng, 200, 5, 40)
    expected = frechet_standard_error(x, feature_statistics(x), feature_statistics(y))
    a, b = feature_statistics(x_embedded), feature_statistics(y_embedded)
    assert frechet_standard_error(x_embedded, a, b) == pytest.approx(expected, rel=1e-6)


def test_standard_error_ignores_what_the_reference_varies_by_outside_the_features_span():
    # The transport from a singular Gaussian sees the reference only through S1^1/2 S2 S1^1/2.
    rng = np.random.default_rng(0)
    x, x_embedded = embedded(rng, 200, 5, 40)
    y = correlated(rng, 300, 40)
    a, b = feature_statistics(x_embedded), feature_statistics(y)
    basis = ortho_group.rvs(40, random_state=0)[:5]
    b_inside = FeatureStatistics(basis @ b.mean, basis @ b.covariance @ basis.T)
    expected = frechet_standard_error(x, feature_statistics(x), b_inside)
    assert frechet_standard_error(x_embedded, a, b) == pytest.approx(expected, rel=1e-6)


def test_standard_error_does_not_depend_on_constant_features():
    # Units of a network that never fire.
    rng = np.random.default_rng(0)
    x, y = correlated(rng, 200, 5), correlated(rng, 200, 5)
    padded = [np.pad(z, ((0, 0), (0, 3))) for z in (x, y)]
    expected = frechet_standard_error(x, feature_statistics(x), feature_statistics(y))
    error = frechet_standard_error(padded[0], *(feature_statistics(z) for z in padded))
    assert error == pytest.approx(expected, rel=1e-9)
