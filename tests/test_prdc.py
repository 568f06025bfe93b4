import math
import tracemalloc

import numpy as np
import pytest
from prdc import compute_prdc

from qcsbm.metrics import prdc
from qcsbm.metrics.prdc import precision_recall


def normal(seed, n, d, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).standard_normal((n, d))


def pair(result):
    return result.precision, result.recall


def peer(real, fake, k):
    result = compute_prdc(real, fake, k)
    return result["precision"], result["recall"]


@pytest.mark.parametrize(("n", "m"), [(40, 40), (200, 90), (60, 300)])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("d", [2, 64])
def test_shares_equal_those_of_prdc(n, m, k, d):
    real, fake = normal(0, n, d), normal(1, m, d, mean=3 / math.sqrt(d))
    result = precision_recall(real, fake, k)
    assert 0 < result.precision < 1 and 0 < result.recall < 1
    assert pair(result) == peer(real, fake, k)


def test_shares_of_float32_features_far_from_the_origin_equal_those_near_it():
    # Multiples of 1/8: exact in float32 with and without the offset.
    real = np.round(8 * normal(0, 150, 16)).astype(np.float32) / 8
    fake = np.round(8 * normal(1, 150, 16, mean=0.2)).astype(np.float32) / 8
    expected = pair(precision_recall(real, fake))
    assert 0 < expected[0] < 1 and 0 < expected[1] < 1
    assert pair(precision_recall(real + 4096, fake + 4096)) == expected


def test_points_on_a_line_by_hand():
    # Squared distances of integers are exact. With k = 1 the balls of the real points reach 1, 1
    # and 7, those of the fake ones 2, 2 and 18.
    real = np.array([[0.0], [1.0], [8.0]])
    fake = np.array([[2.0], [4.0], [22.0]])
    result = precision_recall(real, fake, k=1)
    # 2 and 4 are inside (1, 15); 0 is on the edge of 2's ball and outside; 1 and 8 are inside.
    assert pair(result) == pytest.approx((2 / 3, 2 / 3))
    assert result.precision_stderr == pytest.approx(math.sqrt(2 / 9 / 3))
    assert result.recall_stderr == pytest.approx(math.sqrt(2 / 9 / 3))


def test_ties_and_duplicates_on_a_grid_are_those_of_prdc():
    # Integers in 2 dimensions, so that distances are exact and most of them coincide with radii.
    rng = np.random.default_rng(0)
    real = rng.integers(0, 12, (150, 2)).astype(float)
    fake = rng.integers(4, 16, (150, 2)).astype(float)
    assert len(np.unique(real, axis=0)) < 150
    result = precision_recall(real, fake)
    assert 0 < result.precision < 1 and 0 < result.recall < 1
    assert pair(result) == peer(real, fake, 3)


def test_repeated_points_have_empty_balls():
    # k + 1 copies of a point: its radius is 0, and nothing is strictly inside, not even a copy.
    real = np.repeat(np.arange(5.0)[:, None], 4, 0)
    result = precision_recall(real, real.copy(), k=3)
    assert pair(result) == (0, 0)
    assert pair(precision_recall(real, real.copy(), k=4)) == (1, 1)


@pytest.mark.parametrize("block", [7, 64, 256])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shares_do_not_depend_on_the_side_of_the_squares(monkeypatch, block, dtype):
    real, fake = normal(0, 300, 32).astype(dtype), normal(1, 257, 32, mean=0.2).astype(dtype)
    expected = precision_recall(real, fake)
    assert 0 < expected.precision < 1 and 0 < expected.recall < 1
    assert pair(expected) == peer(real.astype(float), fake.astype(float), 3)
    monkeypatch.setattr(prdc, "BLOCK", block)
    assert precision_recall(real, fake) == expected


def test_ties_are_strict_in_squares_of_any_side(monkeypatch):
    # Distances between integers are exact however they are added up.
    rng = np.random.default_rng(0)
    real, fake = (rng.integers(0, 9, (70, 2)) + offset for offset in (0, 3))
    expected = peer(real.astype(float), fake.astype(float), 3)
    for block in (1, 4, 13, 64, 100):
        monkeypatch.setattr(prdc, "BLOCK", block)
        assert pair(precision_recall(real, fake)) == expected


def test_neither_distances_nor_float64_features_are_held_whole(monkeypatch):
    n, d, block = 3000, 256, 250  # distances of 69 MiB; features of 3 MiB, 6 in float64
    real, fake = normal(0, n, d).astype(np.float32), normal(1, n, d).astype(np.float32)
    monkeypatch.setattr(prdc, "BLOCK", block)
    tracemalloc.start()
    try:
        precision_recall(real, fake)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Features, their distances and two copies for the partition, 0.5 MiB each; and the radii.
    assert peak < 4 * 2**20


def modes(seed, n, count):
    """Features (n, 8) in ``count`` tight modes far from each other."""
    rng = np.random.default_rng(seed)
    centres = 100 * np.eye(8)[:count]
    return centres[rng.integers(count, size=n)] + rng.standard_normal((n, 8))


def test_mode_collapse_costs_recall_and_no_precision():
    real = modes(0, 1000, 4)
    full = precision_recall(real, modes(1, 1000, 4))
    collapsed = precision_recall(real, modes(2, 1000, 1))
    assert collapsed.precision >= full.precision - 4 * full.precision_stderr
    # One of four modes is covered.
    assert collapsed.recall < 0.25 + 4 * math.sqrt(0.25 * 0.75 / 1000) < full.recall


def test_modes_that_are_not_real_cost_precision_and_no_recall():
    fake = modes(0, 1000, 4)
    full = precision_recall(modes(1, 1000, 4), fake)
    invented = precision_recall(modes(2, 1000, 1), fake)
    assert invented.recall >= full.recall - 4 * full.recall_stderr
    assert invented.precision < 0.25 + 4 * math.sqrt(0.25 * 0.75 / 1000) < full.precision


def test_far_away_samples_have_neither_precision_nor_recall():
    result = precision_recall(normal(0, 100, 4), normal(1, 100, 4, mean=1000.0))
    assert pair(result) == (0, 0)
    assert (result.precision_stderr, result.recall_stderr) == (0, 0)


def test_sets_with_no_kth_neighbour_are_refused():
    three, four = normal(0, 3, 2), normal(1, 4, 2)
    with pytest.raises(ValueError, match="real features: found 3, expected more than k = 3"):
        precision_recall(three, four)
    with pytest.raises(ValueError, match="fake features: found 3, expected more than k = 3"):
        precision_recall(four, three)
    precision_recall(four, four)


def test_standard_errors_are_binomial():
    rng = np.random.default_rng(0)
    r = precision_recall(rng.normal(size=(80, 5)), rng.normal(size=(60, 5)))
    assert r.precision_stderr == pytest.approx(np.sqrt(r.precision * (1 - r.precision) / 60))
    assert r.recall_stderr == pytest.approx(np.sqrt(r.recall * (1 - r.recall) / 80))
