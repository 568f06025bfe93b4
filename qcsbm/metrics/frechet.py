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

from qcsbm.errors import BadInput

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
    cross = _factor(a.covariance)[0].T @ _factor(b.covariance)[0]
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


def frechet_standard_error(
    features: np.ndarray, a: FeatureStatistics, b: FeatureStatistics
) -> float:
    """Standard error of the distance over the draw of ``features`` (N, D), whose statistics are
    ``a``, with ``b`` held fixed.

    By the influence function of the plug-in estimate: with T the matrix of the optimal transport
    from N(m_1, S_1) to N(m_2, S_2), IF(x) = 2 (m_1 − m_2)·(x − m_1) + (x − m_1)ᵀ(I − T)(x − m_1)
    − tr((I − T) S_1). With S_1 = A Aᵀ, T = A⁻ᵀ (Aᵀ S_2 A)^{1/2} A⁻¹. The bias of the estimate,
    O(D / N), is not in it.

    References:
        Central limit theorems for empirical transportation cost in general dimension, and
        Wasserstein distance on Gaussians (Rippl et al., 2016); https://arxiv.org/abs/1507.04090
    """
    factor, rows = _factor(a.covariance)
    squares, vectors = np.linalg.eigh(factor.T @ b.covariance @ factor)
    # x − m_1 lies in the range of A, and the first pivots' rows of A are triangular: T = W Wᵀ.
    w = solve_triangular(factor[rows], vectors * squares.clip(0) ** 0.25, trans="T", lower=True)
    influence = np.concatenate(
        [
            2 * x @ (a.mean - b.mean) + np.square(x).sum(1) - np.square(x[:, rows] @ w).sum(1)
            for x in _centred(features, a.mean)
        ]
    )
    return float(influence.std(ddof=1) / np.sqrt(len(influence)))


def _centred(features: np.ndarray, mean: np.ndarray) -> Iterator[np.ndarray]:
    """``features`` (N, D) minus ``mean``, in float64 blocks of rows."""
    for start in range(0, len(features), BLOCK):
        yield features[start : start + BLOCK] - mean


def _factor(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A (D, r) with A Aᵀ the ``covariance`` (D, D) of rank r, and the r pivots, whose rows of A are
    lower triangular.
    """
    triangle, pivots, rank, _ = lapack.dpstrf(covariance, lower=1)
    rows = pivots - 1
    factor = np.empty((len(covariance), rank))
    factor[rows] = np.tril(triangle)[:, :rank]
    return factor, rows[:rank]
