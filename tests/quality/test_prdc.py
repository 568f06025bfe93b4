import math
import tracemalloc
from dataclasses import astuple

import numpy as np
import pytest
from prdc import compute_prdc
from scipy.stats import binom, chi2

from qcsbm.quality import distances
from qcsbm.quality.prdc import precision_recall


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
    monkeypatch.setattr(distances, "BLOCK", block)
    assert precision_recall(real, fake) == expected


def test_ties_are_strict_in_squares_of_any_side(monkeypatch):
    # Distances between integers are exact however they are added up.
    rng = np.random.default_rng(0)
    real, fake = (rng.integers(0, 9, (70, 2)) + offset for offset in (0, 3))
    expected = peer(real.astype(float), fake.astype(float), 3)
    for block in (4, 13, 64, 100):
        monkeypatch.setattr(distances, "BLOCK", block)
        assert pair(precision_recall(real, fake)) == expected


def test_neither_distances_nor_float64_features_are_held_whole(monkeypatch):
    n, d, block = 2000, 1024, 250  # distances of 31 MiB; features of 8 MiB, 16 in float64
    real, fake = normal(0, n, d).astype(np.float32), normal(1, n, d).astype(np.float32)
    monkeypatch.setattr(distances, "BLOCK", block)
    monkeypatch.setattr(distances, "DIFFERENCES", 2**14)
    tracemalloc.start()
    try:
        precision_recall(real, fake)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Two blocks of features, their distances, and 17 bytes for each generated sample and halving.
    assert peak < 10 * 2**20


def with_repeats(seed, n, d, share=0.1):
    """Features (n, d) of which a ``share`` are one and the same, as those of black images are."""
    x = normal(seed, n, d).astype(np.float32)
    x[: int(share * n)] = np.abs(normal(99, 1, d))
    return x


@pytest.mark.parametrize("d", [8, 300])
def test_nothing_depends_on_the_order_of_rows_or_the_side_of_blocks(monkeypatch, d):
    rng = np.random.default_rng(0)
    real, fake = with_repeats(0, 300, d), with_repeats(1, 200, d)
    expected = precision_recall(real, fake)
    assert 0 < expected.precision < 1 and 0 < expected.recall < 1
    for block in (2048, 37, 100):
        monkeypatch.setattr(distances, "BLOCK", block)
        found = precision_recall(rng.permutation(real), rng.permutation(fake))
        # The order of real samples changes that of a sum.
        assert astuple(found) == pytest.approx(astuple(expected), rel=1e-12)
        assert pair(found) == pair(expected)


@pytest.mark.parametrize("d", [16, 300])
def test_shares_of_rows_that_repeat_are_those_of_their_definition(d):
    # Every row four times: all radii are 0 and no ball has an inside.
    real, fake = (np.repeat(normal(seed, 50, d).astype(np.float32), 4, 0) for seed in (0, 1))
    fake[:100] = real[:100]
    assert pair(precision_recall(real, fake)) == (0, 0)
    # Three times: the third neighbour is another row, and copies are inside.
    real, fake = (np.repeat(x[::4], 3, 0) for x in (real, fake))
    result = precision_recall(real, fake)
    assert pair(result) == by_definition(real, fake) and result.precision >= 0.5


def by_definition(real, fake, k=3):
    """Precision and recall, every distance on its own."""

    def squared(x, y):
        return np.array([np.square(x.astype(float) - row).sum(1) for row in y.astype(float)]).T

    radius = [np.sort(squared(x, x), axis=1)[:, k] for x in (real, fake)]
    between = squared(real, fake)
    precision = (between < radius[0][:, None]).any(0).mean()
    return float(precision), float((between < radius[1]).any(1).mean())


def test_nearly_equal_rows_far_from_the_origin_are_told_apart():
    # Rounding of ‖x‖² is a thousand times the distances.
    real, fake = (1e4 + 1e-7 * normal(seed, 60, 20) for seed in (0, 1))
    expected = by_definition(real, fake)
    assert 0 < expected[0] < 1 and pair(precision_recall(real, fake)) == expected


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


def test_error_of_precision_is_binomial_and_that_of_recall_needs_two_halves():
    rng = np.random.default_rng(0)
    r = precision_recall(rng.normal(size=(80, 5)), rng.normal(size=(60, 5)))
    assert r.precision_stderr == pytest.approx(np.sqrt(r.precision * (1 - r.precision) / 60))
    assert precision_recall(normal(0, 80, 5), normal(1, 8, 5)).recall_stderr is not None
    assert precision_recall(normal(0, 80, 5), normal(1, 7, 5)).recall_stderr is None


def shifted(rng, n, d, scale):
    return 0.1 + scale * rng.standard_normal((n, d))


@pytest.mark.parametrize(
    "n, m, d, scale",
    [
        # More real samples than generated ones: they share the balls that cover them.
        pytest.param(800, 120, 8, 1.0, id="few"),
        pytest.param(300, 300, 32, 0.9, id="as many"),
        pytest.param(150, 500, 8, 0.8, id="many"),
    ],
)
def test_errors_are_the_spread_of_draws_of_generated_samples(n, m, d, scale):
    rng = np.random.default_rng(0)
    real, repeats = normal(7, n, d), 100
    results = [precision_recall(real, shifted(rng, m, d, scale)) for _ in range(repeats)]
    recall = np.array([(r.recall, r.recall_stderr) for r in results])
    precision = np.array([(r.precision, r.precision_stderr) for r in results])
    # (R - 1) s^2 / sigma^2 is chi-square for a normal statistic; 1e-4 on each side. Halves have
    # somewhat other shares than the whole, which is 10 %; the binomial error has no such fault.
    low, high = np.sqrt(chi2.ppf([1e-4, 1 - 1e-4], repeats - 1) / (repeats - 1))
    for (values, errors), slack in ((recall.T, 0.1), (precision.T, 0.0)):
        ratio = values.std(ddof=1) / np.sqrt(np.mean(errors**2))
        assert (1 - slack) * low < ratio < (1 + slack) * high
        covered = np.mean(np.abs(values - values.mean()) < 1.96 * errors)
        within = binom.ppf([1e-4, 1 - 1e-4], repeats, 0.95) / repeats
        assert within[0] <= covered <= within[1]
