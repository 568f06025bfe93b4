"""Distances that are fast to compute and compared as exactly as slow ones."""

from fractions import Fraction

import numpy as np
import pytest

from qcsbm.quality import distances
from qcsbm.quality.distances import approximate, exact, nearest


def rational(x, y):
    """‖x − y‖² of two rows without any rounding."""
    return sum(
        (Fraction(a) - Fraction(b)) ** 2 for a, b in zip(x.tolist(), y.tolist(), strict=True)
    )


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("d", [1, 3, 200])
def test_bound_holds_for_both_ways_of_computing_a_distance(offset, d):
    rng = np.random.default_rng(0)
    x, y = (offset + rng.standard_normal((7, d)) for _ in range(2))
    y[0] = x[0]
    squared, error = approximate(x, y)
    i, j = (side.ravel() for side in np.indices(squared.shape))
    pairs = list(zip(i, j, exact(x, y, i, j), squared.ravel(), strict=True))
    for a, b, direct, rough in pairs:
        truth = rational(x[a], y[b])
        assert abs(Fraction(direct) - truth) <= d * Fraction(2) ** -51 * truth
        assert abs(Fraction(rough) - Fraction(direct)) <= error
    # No more than a thousand times the largest error that there is.
    assert error < 1e3 * d * max(abs(rough - direct) for _, _, direct, rough in pairs) + 1e-300


def test_exact_distance_is_a_function_of_its_two_rows(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((50, 77)).astype(np.float32) for _ in range(2))
    i, j = rng.integers(50, size=(2, 400))
    expected = exact(x, y, i, j)
    np.testing.assert_array_equal(exact(y, x, j, i), expected)
    order = rng.permutation(400)
    monkeypatch.setattr(distances, "DIFFERENCES", 300)
    np.testing.assert_array_equal(exact(x, y, i[order], j[order]), expected[order])
    assert (exact(x, x, i, i) == 0).all()


@pytest.mark.parametrize("count", [1, 3, 20, 59])
@pytest.mark.parametrize("block", [1, 7, 20, 21, 64])
def test_nearest_are_those_of_all_distances(monkeypatch, count, block):
    x = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    x[5:9] = x[20:24] = x[40]
    monkeypatch.setattr(distances, "BLOCK", block)
    squared, index = nearest(x, count)
    i, j = (side.ravel() for side in np.indices((60, 60)))
    whole = exact(x, x, i, j).reshape(60, 60)
    np.fill_diagonal(whole, np.inf)
    np.testing.assert_array_equal(squared, np.sort(whole, axis=1)[:, :count])
    np.testing.assert_array_equal(np.take_along_axis(whole, index, 1), squared)
    assert all(len(set(row)) == count for row in index.tolist())
