import math
import tracemalloc

import numpy as np
import pytest
from prdc import compute_prdc
from scipy.stats import binom, chi2

from qcsbm.quality import distances
from qcsbm.quality.prdc import prdc


def normal(seed, n, d, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).standard_normal((n, d))


def values(result):
    return tuple(estimate.value for estimate in result)


def errors(result):
    return tuple(estimate.stderr for estimate in result)


def peer(real, fake, k):
    result = compute_prdc(real, fake, k)
    shares = (result[name] for name in ("precision", "recall", "density", "coverage"))
    # Only sums of numbers that are not whole depend on their order.
    return pytest.approx(tuple(shares), rel=1e-14)


def assert_neither_none_nor_all(result):
    """A share of 0 or 1, or a density that says no more than a share, would be no test."""
    shares = (result.precision.value, result.recall.value, result.coverage.value)
    assert all(0 < share < 1 for share in shares)
    assert result.density.value != result.precision.value


@pytest.mark.parametrize(("n", "m"), [(40, 40), (200, 90), (60, 300)])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("d", [2, 64])
def test_shares_equal_those_of_prdc(n, m, k, d):
    real, fake = normal(0, n, d), normal(1, m, d, mean=3 / math.sqrt(d))
    result = prdc(real, fake, k)
    assert_neither_none_nor_all(result)
    assert values(result) == peer(real, fake, k)


def test_shares_of_float32_features_far_from_the_origin_equal_those_near_it():
    # Multiples of 1/8: exact in float32 with and without the offset.
    real = np.round(8 * normal(0, 150, 16)).astype(np.float32) / 8
    fake = np.round(8 * normal(1, 150, 16, mean=0.2)).astype(np.float32) / 8
    expected = prdc(real, fake)
    assert_neither_none_nor_all(expected)
    assert values(prdc(real + 4096, fake + 4096)) == values(expected)


def test_points_on_a_line_by_hand():
    # Squared distances of integers are exact. With k = 1 the balls of the real points reach 1, 1
    # and 7, those of the fake ones 2, 2 and 18.
    real = np.array([[0.0], [1.0], [8.0]])
    fake = np.array([[2.0], [4.0], [22.0]])
    result = prdc(real, fake, k=1)
    # 2 and 4 are inside (1, 15); 0 is on the edge of 2's ball and outside; 1 and 8 are inside. Of
    # the real balls (-1, 1) and (0, 2) have nothing inside, (1, 15) has two.
    assert values(result) == pytest.approx((2 / 3, 2 / 3, 2 / 3, 1 / 3))
    assert result.precision.stderr == pytest.approx(math.sqrt(2 / 9 / 3))
    # 1, 1 and 0 balls around each: a variance of 1/3.
    assert result.density.stderr == pytest.approx(1 / 3)


def test_density_counts_all_balls_and_coverage_each_ball_once():
    real = np.array([[0.0], [2.0], [3.0], [9.0]])
    fake = np.array([[1.5], [1.75], [2.5], [50.0]])
    # With k = 2 the balls reach 3, 2, 3 and 7: (-3, 3), (0, 4), (0, 6) and (2, 16). The first three
    # have 1.5 and 1.75 inside, all four 2.5, and none has 50.
    result = prdc(real, fake, k=2)
    assert result.density.value == (3 + 3 + 4 + 0) / (2 * 4)
    assert result.coverage.value == 1 and result.precision.value == 0.75
    assert result.density.stderr == pytest.approx(np.std([3, 3, 4, 0], ddof=1) / 2 / 2)


def test_ties_and_duplicates_on_a_grid_are_those_of_prdc():
    # Integers in 2 dimensions, so that distances are exact and most of them coincide with radii.
    rng = np.random.default_rng(0)
    real = rng.integers(0, 12, (150, 2)).astype(float)
    fake = rng.integers(4, 16, (150, 2)).astype(float)
    assert len(np.unique(real, axis=0)) < 150
    result = prdc(real, fake)
    assert_neither_none_nor_all(result)
    assert values(result) == peer(real, fake, 3)


def test_repeated_points_have_empty_balls():
    # k + 1 copies of a point: its radius is 0, and nothing is strictly inside, not even a copy.
    real = np.repeat(np.arange(5.0)[:, None], 4, 0)
    result = prdc(real, real.copy(), k=3)
    assert values(result) == (0, 0, 0, 0)
    # With a ball that reaches to the next point, all copies of a point are in all of its balls.
    assert values(prdc(real, real.copy(), k=4)) == (1, 1, 1, 1)


@pytest.mark.parametrize("block", [7, 64, 256])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shares_do_not_depend_on_the_side_of_the_squares(monkeypatch, block, dtype):
    real, fake = normal(0, 300, 32).astype(dtype), normal(1, 257, 32, mean=0.2).astype(dtype)
    expected = prdc(real, fake)
    assert_neither_none_nor_all(expected)
    assert values(expected) == peer(real.astype(float), fake.astype(float), 3)
    monkeypatch.setattr(distances, "BLOCK", block)
    assert prdc(real, fake) == expected


def test_ties_are_strict_in_squares_of_any_side(monkeypatch):
    # Distances between integers are exact however they are added up.
    rng = np.random.default_rng(0)
    real, fake = (rng.integers(0, 9, (70, 2)) + offset for offset in (0, 3))
    expected = peer(real.astype(float), fake.astype(float), 3)
    for block in (4, 13, 64, 100):
        monkeypatch.setattr(distances, "BLOCK", block)
        assert values(prdc(real, fake)) == expected


def test_neither_distances_nor_float64_features_are_held_whole(monkeypatch):
    n, d, block = 2000, 1024, 250  # distances of 31 MiB; features of 8 MiB, 16 in float64
    real, fake = normal(0, n, d).astype(np.float32), normal(1, n, d).astype(np.float32)
    monkeypatch.setattr(distances, "BLOCK", block)
    monkeypatch.setattr(distances, "DIFFERENCES", 2**14)
    tracemalloc.start()
    try:
        prdc(real, fake)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Two blocks of features, their distances, and 22 bytes for each pair of samples and halving.
    assert peak < 12 * 2**20


def with_repeats(seed, n, d, share=0.1):
    """Features (n, d) of which a ``share`` are one and the same, as those of black images are."""
    x = normal(seed, n, d).astype(np.float32)
    x[: int(share * n)] = np.abs(normal(99, 1, d))
    return x


@pytest.mark.parametrize("d", [8, 300])
def test_nothing_depends_on_the_order_of_rows_or_the_side_of_blocks(monkeypatch, d):
    rng = np.random.default_rng(0)
    real, fake = with_repeats(0, 300, d), with_repeats(1, 200, d)
    expected = prdc(real, fake)
    assert_neither_none_nor_all(expected)
    for block in (2048, 37, 100):
        monkeypatch.setattr(distances, "BLOCK", block)
        found = prdc(rng.permutation(real), rng.permutation(fake))
        # The order of samples changes that of a sum.
        assert errors(found) == pytest.approx(errors(expected), rel=1e-12)
        assert values(found) == values(expected)


@pytest.mark.parametrize("d", [16, 300])
def test_shares_of_rows_that_repeat_are_those_of_their_definition(d):
    # Every row four times: all radii are 0 and no ball has an inside.
    real, fake = (np.repeat(normal(seed, 50, d).astype(np.float32), 4, 0) for seed in (0, 1))
    fake[:100] = real[:100]
    assert values(prdc(real, fake)) == (0, 0, 0, 0)
    # Three times: the third neighbour is another row, and copies are inside.
    real, fake = (np.repeat(x[::4], 3, 0) for x in (real, fake))
    result = prdc(real, fake)
    assert values(result) == by_definition(real, fake) and result.precision.value >= 0.5


def by_definition(real, fake, k=3):
    """All four, every distance on its own."""

    def squared(x, y):
        return np.array([np.square(x.astype(float) - row).sum(1) for row in y.astype(float)]).T

    radius = [np.sort(squared(x, x), axis=1)[:, k] for x in (real, fake)]
    between = squared(real, fake)
    inside = between < radius[0][:, None]
    recall = (between < radius[1]).any(1).mean()
    return inside.any(0).mean(), recall, inside.sum(0).mean() / k, inside.any(1).mean()


def test_nearly_equal_rows_far_from_the_origin_are_told_apart():
    # Rounding of ‖x‖² is a thousand times the distances.
    real, fake = (1e4 + 1e-7 * normal(seed, 60, 20) for seed in (0, 1))
    result = prdc(real, fake)
    assert_neither_none_nor_all(result)
    assert values(result) == by_definition(real, fake)


def modes(seed, n, count):
    """Features (n, 8) in ``count`` tight modes far from each other."""
    rng = np.random.default_rng(seed)
    centres = 100 * np.eye(8)[:count]
    return centres[rng.integers(count, size=n)] + rng.standard_normal((n, 8))


def test_mode_collapse_costs_recall_and_coverage_and_no_precision():
    real = modes(0, 1000, 4)
    full = prdc(real, modes(1, 1000, 4))
    collapsed = prdc(real, modes(2, 1000, 1))
    assert collapsed.precision.value >= full.precision.value - 4 * full.precision.stderr
    # One of four modes is covered.
    quarter = 0.25 + 4 * math.sqrt(0.25 * 0.75 / 1000)
    assert collapsed.recall.value < quarter < full.recall.value
    assert collapsed.coverage.value < quarter < full.coverage.value


def test_modes_that_are_not_real_cost_precision_and_density_and_no_recall():
    fake = modes(0, 1000, 4)
    full = prdc(modes(1, 1000, 4), fake)
    invented = prdc(modes(2, 1000, 1), fake)
    assert invented.recall.value >= full.recall.value - 4 * full.recall.stderr
    quarter = 0.25 + 4 * math.sqrt(0.25 * 0.75 / 1000)
    assert invented.precision.value < quarter < full.precision.value
    assert full.density.value > 0.25 + 4 * invented.density.stderr
    # A quarter of the samples are each in as many balls as were they all there is.
    assert invented.density.value == pytest.approx(0.25, abs=4 * invented.density.stderr + 0.05)


def test_one_outlier_raises_precision_and_density_little():
    # The authors' own example: the ball of one real outlier has all samples inside.
    real, fake = normal(0, 500, 16), normal(1, 500, 16, mean=1.5)
    outlier = np.concatenate([real, np.full((1, 16), 3.0)])
    before, after = prdc(real, fake), prdc(outlier, fake)
    assert after.precision.value > before.precision.value + 0.5
    assert after.density.value < before.density.value + 0.5


def test_far_away_samples_have_none_of_the_four():
    result = prdc(normal(0, 100, 4), normal(1, 100, 4, mean=1000.0))
    assert values(result) == errors(result) == (0, 0, 0, 0)


@pytest.mark.parametrize("n, m, k", [(300, 80, 3), (60, 200, 5)])
def test_means_of_density_and_coverage_are_known_where_distributions_are_equal(n, m, k):
    rng = np.random.default_rng(0)
    # What is known does not depend on the distribution.
    draws = [
        prdc(rng.exponential(size=(n, 3)), rng.exponential(size=(m, 3)), k) for _ in range(200)
    ]
    missed = np.prod([(n - i) / (n + m - i) for i in range(1, k + 1)])
    for name, expected in (("density", 1.0), ("coverage", 1 - missed)):
        found = np.array([getattr(draw, name).value for draw in draws])
        assert abs(found.mean() - expected) < 4 * found.std(ddof=1) / 200**0.5
    assert missed == pytest.approx((1 + m / n) ** -k, abs=0.01)


def test_sets_with_no_kth_neighbour_are_refused():
    three, four = normal(0, 3, 2), normal(1, 4, 2)
    with pytest.raises(ValueError, match="real features: found 3, expected more than k = 3"):
        prdc(three, four)
    with pytest.raises(ValueError, match="fake features: found 3, expected more than k = 3"):
        prdc(four, three)
    prdc(four, four)


def test_error_of_precision_is_binomial_and_those_of_recall_and_coverage_need_two_halves():
    rng = np.random.default_rng(0)
    r = prdc(rng.normal(size=(80, 5)), rng.normal(size=(60, 5)))
    share = r.precision.value
    assert r.precision.stderr == pytest.approx(np.sqrt(share * (1 - share) / 60))
    for n, m, expected in ((80, 8, (True, True)), (80, 7, (False, False)), (7, 8, (True, False))):
        result = prdc(normal(0, n, 5), normal(1, m, 5))
        assert (result.recall.stderr is not None, result.coverage.stderr is not None) == expected


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
    results = [prdc(real, shifted(rng, m, d, scale)) for _ in range(repeats)]
    # (R - 1) s^2 / sigma^2 is chi-square for a normal statistic; 1e-4 on each side. Halves have
    # somewhat other shares than the whole, which is 10 %; the other two errors have no such fault.
    low, high = np.sqrt(chi2.ppf([1e-4, 1 - 1e-4], repeats - 1) / (repeats - 1))
    within = binom.ppf([1e-4, 1 - 1e-4], repeats, 0.95) / repeats
    for name, slack in (("precision", 0.0), ("recall", 0.1), ("density", 0.0), ("coverage", 0.1)):
        found, stderr = np.array([getattr(result, name) for result in results]).T
        ratio = found.std(ddof=1) / np.sqrt(np.mean(stderr**2))
        assert (1 - slack) * low < ratio < (1 + slack) * high, name
        covered = np.mean(np.abs(found - found.mean()) < 1.96 * stderr)
        assert within[0] <= covered <= within[1], name
