r"""Fréchet distance between Gaussians fitted to features.

.. math:: d^2 = \|m_1 - m_2\|^2 + tr\,S_1 + tr\,S_2 - 2\,tr\,(S_1^{1/2} S_2 S_1^{1/2})^{1/2}

With S_1 = A Aᵀ and S_2 = B Bᵀ the last trace is the sum of the singular values of Aᵀ B, so any
factors do. Cholesky's with pivots is far cheaper than symmetric square roots, stops at the rank
instead of taking roots of null eigenvalues, which are rounding errors, and has its columns in
decreasing order, which keeps the small eigenvalues of Aᵀ B Bᵀ A accurate. With features of the
Inception network the distance is the FID.

References:
    The Fréchet Distance between Multivariate Normal Distributions (Dowson & Landau, 1982)
    GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et
    al., 2017); https://arxiv.org/abs/1706.08500
    LAPACK-Style Codes for Level 2 and 3 Pivoted Cholesky Factorizations (Hammarling, Higham &
    Lucas, 2007); https://eprints.maths.manchester.ac.uk/1193/
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack, solve_triangular

from qcsbm.quality.order import by_content
from qcsbm.runtime.errors import BadInput

# Features that are held in float64 at a time.
BLOCK = 2048


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean (D,) and unbiased covariance (D, D) of feature vectors, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def feature_statistics(features: np.ndarray) -> FeatureStatistics:
    """The statistics of ``features`` (N, D).

    Raises:
        BadInput: fewer than two features.
        ValueError: some are not finite.
    """
    n, d = features.shape
    if n < 2:
        raise BadInput(f"features: found {n} of them, expected at least 2")
    if not all(np.isfinite(features[i : i + BLOCK]).all() for i in range(0, n, BLOCK)):
        raise ValueError("features: found values that are not finite, expected finite ones")
    mean = features.mean(0, dtype=np.float64)
    scatter = np.zeros((d, d))
    for x in _centred(features, mean):
        scatter += x.T @ x
    return FeatureStatistics(mean, scatter / (n - 1))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The squared Fréchet distance, as FID reports it; never negative."""
    cross = _factor(a.covariance).T @ _factor(b.covariance)
    # Of the two products with its transpose, the smaller one has no null eigenvalues.
    if cross.shape[0] > cross.shape[1]:
        cross = cross.T
    squares = np.linalg.eigvalsh(cross @ cross.T).clip(0)
    distance = (
        np.square(a.mean - b.mean).sum()
        + np.trace(a.covariance)
        + np.trace(b.covariance)
        - 2 * np.sqrt(squares).sum()
    )
    return max(float(distance), 0.0)


@dataclass(frozen=True)
class FrechetEstimate:
    """The distance of features to a reference, and its extrapolation to infinitely many features.

    Both have a standard error over the draw of the features, with the reference held fixed.
    """

    distance: float
    stderr: float
    infinity: float
    infinity_stderr: float


def frechet_estimate(features: np.ndarray, reference: FeatureStatistics) -> FrechetEstimate:
    r"""Estimate the distance of the distribution of ``features`` (N, D) to ``reference``.

    The distance of N features is too large, by a bias whose leading term is of order 1/N. With d_A
    and d_B the distances of two halves of the features, 2 d − (d_A + d_B)/2 is free of that term:
    Chong & Forsyth's extrapolation from two sizes. It can be negative.

    The errors are of second order. Let σ_1² be what single features contribute to the variance, and
    σ_2² what pairs add; the extrapolation counts pairs between halves twice, and those within not
    at all:

    .. math:: Var\, d = σ_1^2 + σ_2^2, \qquad Var\, d_∞ = σ_1^2 + 2 σ_2^2

    The variance of the influence, divided by N, is the latter: it holds the noise of both features
    of a pair. The covariance of the influences on d_A and d_B is N σ_1²: their noises are
    independent.

    Raises:
        ValueError: fewer than four features, or some that are not finite.

    References:
        Effectively Unbiased FID and Inception Score and Where to Find Them (Chong & Forsyth, 2020);
        https://arxiv.org/abs/1911.07023
        The Jackknife Estimate of Variance (Efron & Stein, 1981), Section 3, for the excess
    """
    n = len(features)
    if n < 4:
        raise ValueError(f"features: found {n} of them, expected at least 4")
    order = by_content(features)
    halves = order[::2], order[1::2]
    whole = feature_statistics(features)
    parts = [feature_statistics(features[half]) for half in halves]
    distance, *of_parts = (frechet_distance(a, reference) for a in (whole, *parts))
    jackknife = influence(features, whole, reference).var(ddof=1) / n
    # One half at a time: influences on its own statistics and on those of the other half have
    # different means.
    influences = np.array([influence(features, part, reference) for part in parts])
    shared = sum(len(half) * np.cov(influences[:, half])[0, 1] for half in halves)
    # Single features contribute no more than the whole variance, but their estimate may exceed it.
    first_order = np.clip(shared / n**2, 0.0, jackknife)
    return FrechetEstimate(
        distance,
        float(np.sqrt((jackknife + first_order) / 2)),
        float(2 * distance - np.mean(of_parts)),
        float(np.sqrt(jackknife)),
    )


def influence(features: np.ndarray, a: FeatureStatistics, b: FeatureStatistics) -> np.ndarray:
    """The influence of each of ``features`` (N, D) on the distance of ``a`` to ``b``; (N,).

    With T the matrix of the optimal transport from N(m_1, S_1) to N(m_2, S_2), IF(x) =
    2 (m_1 − m_2)·(x − m_1) + (x − m_1)ᵀ(I − T)(x − m_1), up to a constant. With S_1 = A Aᵀ,
    T = A⁻ᵀ (Aᵀ S_2 A)^{1/2} A⁻¹, by the pseudo-inverse where S_1 is singular.

    References:
        Central limit theorems for empirical transportation cost in general dimension, and
        Wasserstein distance on Gaussians (Rippl et al., 2016); https://arxiv.org/abs/1507.04090
    """
    factor = _factor(a.covariance)
    squares, vectors = np.linalg.eigh(factor.T @ b.covariance @ factor)
    # T = W Wᵀ with A⁺ = R⁻¹ Qᵀ.
    basis, triangle = np.linalg.qr(factor)
    w = basis @ solve_triangular(triangle, vectors * squares.clip(0) ** 0.25, trans="T")
    return np.concatenate(
        [
            2 * x @ (a.mean - b.mean) + np.square(x).sum(1) - np.square(x @ w).sum(1)
            for x in _centred(features, a.mean)
        ]
    )


def _centred(features: np.ndarray, mean: np.ndarray) -> Iterator[np.ndarray]:
    """``features`` (N, D) minus ``mean``, in float64 blocks of rows."""
    for start in range(0, len(features), BLOCK):
        yield features[start : start + BLOCK] - mean


def _factor(covariance: np.ndarray) -> np.ndarray:
    """A (D, r) with A Aᵀ the ``covariance`` (D, D) of rank r."""
    triangle, pivots, rank, _ = lapack.dpstrf(covariance, lower=1)
    factor = np.empty((len(covariance), rank))
    factor[pivots - 1] = np.tril(triangle)[:, :rank]
    return factor
