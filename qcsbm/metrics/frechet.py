r"""Fréchet distance between Gaussians fitted to features.

.. math:: d^2 = \|m_1 - m_2\|^2 + tr\,S_1 + tr\,S_2 - 2\,tr\,(S_1^{1/2} S_2 S_1^{1/2})^{1/2}

The last trace is the nuclear norm of S_1^{1/2} S_2^{1/2}. With features of the Inception network it
is the FID.

References:
    The Fréchet Distance between Multivariate Normal Distributions (Dowson & Landau, 1982)
    GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et
    al., 2017); https://arxiv.org/abs/1706.08500
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean (D,) and unbiased covariance (D, D) of ``n`` feature vectors, float64."""

    mean: np.ndarray
    covariance: np.ndarray
    n: int


def feature_statistics(features: np.ndarray) -> FeatureStatistics:
    """The statistics of ``features`` (N, D).

    Raises:
        ValueError: fewer than two features, or some that are not finite.
    """
    if len(features) < 2:
        raise ValueError(f"features: found {len(features)} of them, expected at least 2")
    if not np.isfinite(features).all():
        raise ValueError("features: found values that are not finite, expected finite ones")
    x = features.astype(np.float64)
    mean = x.mean(0)
    x -= mean
    return FeatureStatistics(mean, x.T @ x / (len(x) - 1), len(x))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The squared Fréchet distance, as FID reports it; never negative."""
    cross = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    distance = (
        np.square(a.mean - b.mean).sum()
        + np.trace(a.covariance)
        + np.trace(b.covariance)
        - 2 * cross
    )
    return max(float(distance), 0.0)


def frechet_standard_error(
    features: np.ndarray, a: FeatureStatistics, b: FeatureStatistics
) -> float:
    """Standard error of the distance over the draw of ``features`` (N, D), whose statistics are
    ``a``, with ``b`` held fixed.

    By the influence function of the plug-in estimate: with T the matrix of the optimal transport
    from N(m_1, S_1) to N(m_2, S_2), IF(x) = 2 (m_1 − m_2)·(x − m_1) + (x − m_1)ᵀ(I − T)(x − m_1)
    − tr((I − T) S_1). The bias of the estimate, O(D / N), is not in it.

    References:
        Central limit theorems for empirical transportation cost in general dimension, and
        Wasserstein distance on Gaussians (Rippl et al., 2016); https://arxiv.org/abs/1507.04090
    """
    root = _root(a.covariance)
    values, vectors = scipy.linalg.eigh(root @ b.covariance @ root)
    middle = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    inverse = np.linalg.pinv(root, hermitian=True)
    i_minus_t = np.eye(len(root)) - inverse @ middle @ inverse
    x = features - a.mean
    influence = 2 * x @ (a.mean - b.mean) + ((x @ i_minus_t) * x).sum(1)
    return float(influence.std(ddof=1) / np.sqrt(len(x)))


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix (D, D)."""
    values, vectors = scipy.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
