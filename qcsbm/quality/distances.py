"""Squared distances at the price of a matrix product, with the decisions of exact ones.

‖x‖² + ‖y‖² − 2 x·y is wrong by a rounding error of the norms: it is not 0 between equal rows, and
it depends on the order in which a matrix product adds. If it is within that error of a threshold,
‖x − y‖² has to decide, which depends on the two rows alone. Then all comparisons are those of
‖x − y‖², for any order of rows and any size of blocks.

References:
    Accuracy and Stability of Numerical Algorithms (Higham, 2002), Eq. (3.5), for the bound
"""

from collections.abc import Iterator

import numpy as np

# Distances are computed in squares of this side; 50 000 × 50 000 of them would be 20 GB.
BLOCK = 2048
# Numbers in the differences of pairs that are held at a time.
DIFFERENCES = 2**18


def blocks(n: int, size: int | None = None) -> Iterator[slice]:
    """Slices of ``size``, `BLOCK` by default, that make up ``range(n)``."""
    size = size or BLOCK
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def approximate(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """‖x_i − y_j‖² (N, M) of ``x`` (N, D) and ``y`` (M, D), and how far it may be from `exact`."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    x_norms, y_norms = np.einsum("id,id->i", x, x), np.einsum("jd,jd->j", y, y)
    squared = x @ y.T
    squared *= -2
    squared += x_norms[:, None]
    squared += y_norms
    # The product, both norms, both sums and `exact` err by less than D + 4 units of (‖x‖ + ‖y‖)².
    units = 2 * (x.shape[1] + 4) * np.finfo(np.float64).eps
    return squared, float(units * (x_norms.max() + y_norms.max()))


def exact(x: np.ndarray, y: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """‖x_i − y_j‖² of the pairs (``i``, ``j``), in float64; (pairs,)."""
    squared = np.empty(len(i))
    for pairs in blocks(len(i), max(1, DIFFERENCES // x.shape[1])):
        difference = x[i[pairs]].astype(np.float64) - y[j[pairs]]
        squared[pairs] = np.square(difference, out=difference).sum(1)
    return squared


def nearest(features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` nearest others of every row of ``features`` (N, D), the nearest first.

    Returns:
        Their exact squared distances and their indices, both (N, count).
    """
    n = len(features)
    squared, index = np.full((n, count), np.inf), np.zeros((n, count), dtype=np.intp)
    sides = list(blocks(n))
    for i, rows in enumerate(sides):
        for columns in sides[i:]:
            rough, error = approximate(features[rows], features[columns])
            if columns == rows:
                np.fill_diagonal(rough, np.inf)
            _merge(features, squared, index, rows, columns, rough, error)
            if columns != rows:
                _merge(features, squared, index, columns, rows, rough.T, error)
    return squared, index


def _merge(
    features: np.ndarray,
    squared: np.ndarray,
    index: np.ndarray,
    rows: slice,
    columns: slice,
    rough: np.ndarray,
    error: float,
) -> None:
    """Update the nearest of ``rows`` by ``columns``, whose distances are ``rough`` (N, M)."""
    count = squared.shape[1]
    farthest = squared[rows, -1]
    # Nothing is nearer than 0; a row itself is infinitely far.
    limit = np.where(farthest > 0, np.minimum(farthest + error, np.finfo(float).max), -np.inf)
    if np.isinf(farthest).any() and rough.shape[1] > count:
        limit = np.minimum(limit, np.partition(rough, count - 1)[:, count - 1] + 2 * error)
    i, j = np.nonzero(rough <= limit[:, None])
    found = exact(features[rows], features[columns], i, j)
    of = np.concatenate([np.repeat(np.arange(len(farthest)), count), i])
    distances = np.concatenate([squared[rows].ravel(), found])
    others = np.concatenate([index[rows].ravel(), columns.start + j])
    order = np.lexsort((distances, of))
    first = np.searchsorted(of[order], np.arange(len(farthest)))
    kept = order[first[:, None] + np.arange(count)]
    squared[rows], index[rows] = distances[kept], others[kept]
