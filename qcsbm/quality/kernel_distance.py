r"""Kernel distance: the squared maximum mean discrepancy of features, with a cubic kernel.

.. math:: MMD^2 = E\,k(x, x') + E\,k(y, y') - 2\,E\,k(x, y), \qquad k(x, y) = (x^T y / D + 1)^3

The means are taken over all pairs of different samples, so that, other than the Fréchet distance,
it has no bias, whatever the number of samples; where it is 0, an estimate may be negative. With
features of the Inception network it is the KID. What others publish under that name is the average
over random subsets of 1 000 samples each: the same in expectation, and noisier.

References:
    Demystifying MMD GANs (Bińkowski et al., 2018); https://arxiv.org/abs/1801.01401
    A Kernel Two-Sample Test (Gretton et al., 2012), Lemma 6, for the estimate
    Unbiased estimators for the variance of MMD estimators (Sutherland & Deka, 2019), for its error;
    https://arxiv.org/abs/1906.02104
"""

import numpy as np

from qcsbm.quality.distances import blocks
from qcsbm.quality.estimate import Estimate


def kernel_distance(features: np.ndarray, reference: np.ndarray) -> Estimate:
    r"""The distance of the distribution of ``features`` (M, D) to that of ``reference`` (N, D).

    The standard error is over the draw of the M features, with the reference held fixed. Then the
    distance is the mean over pairs of

    .. math:: h(x, x') = k(x, x') - \bar k(x, y) - \bar k(x', y) + \bar k(y, y')

    with means over the reference, and its variance is that of a U-statistic,

    .. math:: \frac{4 (M - 2) ζ_1 + 2 ζ_2}{M (M - 1)}, \qquad
        ζ_1 = Cov(h(x, x'), h(x, x'')), \quad ζ_2 = Var\,h

    of which both parts are estimated without bias; a negative one counts as 0. Near the reference
    ζ_1 vanishes and ζ_2 decides: an error of first order, as the jackknife's, would be wrong there.

    Raises:
        ValueError: fewer than four features, or than two of the reference.
    """
    m, n = len(features), len(reference)
    if m < 4 or n < 2:
        raise ValueError(
            f"features: found {m} of samples and {n} of the reference, expected at least 4 and 2"
        )
    nothing = np.zeros(n)
    within_reference = _over_pairs(reference, nothing)[0].sum() / (n * (n - 1))
    to_reference = np.zeros(m)
    for rows in blocks(m):
        for columns in blocks(n):
            to_reference[rows] += _kernel(features[rows], reference[columns]).sum(1)
    sums, squares = _over_pairs(features, to_reference / n - within_reference / 2)
    pairs = m * (m - 1)
    # Mean products of h for two pairs that are the same, that share a sample, and that share none.
    same = squares / pairs
    shared = (sums @ sums - squares) / (pairs * (m - 2))
    none = (sums.sum() ** 2 - 4 * sums @ sums + 2 * squares) / (pairs * (m - 2) * (m - 3))
    variance = (4 * (m - 2) * max(shared - none, 0.0) + 2 * max(same - none, 0.0)) / pairs
    return Estimate(float(sums.sum() / pairs), float(np.sqrt(variance)))


def _over_pairs(x: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, float]:
    """Sums over j ≠ i of h_ij = k(x_i, x_j) − ``offsets``_i − ``offsets``_j, and that of all h².

    ``x`` is (N, D), ``offsets`` and the sums are (N,).
    """
    sums, squares = np.zeros(len(x)), 0.0
    sides = list(blocks(len(x)))
    for i, rows in enumerate(sides):
        for columns in sides[i:]:
            h = _kernel(x[rows], x[columns])
            h -= offsets[rows, None]
            h -= offsets[columns]
            if rows == columns:
                np.fill_diagonal(h, 0)
            else:
                sums[rows] += h.sum(1)
            sums[columns] += h.sum(0)
            squares += float(np.vdot(h, h)) * (1 if rows == columns else 2)
    return sums, squares


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(x_i, y_j) (N, M) of ``x`` (N, D) and ``y`` (M, D), in float64."""
    products = x.astype(np.float64) @ y.astype(np.float64).T
    products /= x.shape[1]
    products += 1
    return products * products * products
