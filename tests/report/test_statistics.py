"""Means over seeds: intervals, tests, corrections and what they can find."""

import numpy as np
import pytest
from scipy import stats

from qcsbm.report.intervals import detectable, holm, t_interval, t_test


def test_interval_is_that_of_scipy():
    values = [1.0, 4.0, 2.5, 3.0]
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((low, high))


def test_fewer_than_two_values_have_no_interval_and_no_test():
    assert t_interval([]) is None and t_interval([3.0]) is None
    assert t_test([]) is None and t_test([3.0]) is None


def test_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    covered = np.mean([low < 0 < high for low, high in map(t_interval, draws)])
    # Four standard errors of a share of 0.95 among 2 000.
    assert covered == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 2000) ** 0.5)


def test_p_is_that_of_scipy_and_of_values_that_are_all_equal_0_or_1():
    for values in ([1.0, 4.0, 2.5, 3.0], [-0.1, 0.3, 0.2], [-5.0, -5.1]):
        assert t_test(values) == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)
    assert t_test([2.0, 2.0]) == 0 and t_test([0.0, 0.0]) == 1


def test_p_is_below_the_level_just_where_the_interval_leaves_out_0():
    for values in np.random.default_rng(1).normal(0.5, size=(300, 4)):
        low, high = t_interval(values)
        assert (t_test(values) < 0.05) == (low > 0 or high < 0)


def test_p_is_uniform_where_there_is_no_effect():
    p = [t_test(values) for values in np.random.default_rng(2).normal(size=(2000, 4))]
    for level in (0.01, 0.05, 0.5):
        tolerance = 4 * (level * (1 - level) / 2000) ** 0.5
        assert np.mean(np.array(p) < level) == pytest.approx(level, abs=tolerance)


def test_holms_adjustment_is_that_of_his_procedure():
    # The example of R's p.adjust, worked out by hand: 0.01 · 4, 0.02 · 3, 0.03 · 2, 0.5 · 1.
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.4, 0.3]) == pytest.approx([0.6, 0.6]) and holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.01, 0.2], m=5) == pytest.approx([0.05, 0.8]) and holm([]) == []
    # Steps down, rejecting while p is at most α / (m − rank), for every α.
    p = np.random.default_rng(3).uniform(size=12) ** 3
    adjusted = np.array(holm(p))
    for alpha in (0.01, 0.05, 0.2, 0.6):
        rejected = set()
        for rank, index in enumerate(np.argsort(p)):
            if p[index] > alpha / (12 - rank):
                break
            rejected.add(index)
        assert set(np.flatnonzero(adjusted <= alpha)) == rejected


@pytest.mark.parametrize("n, m", [(3, 1), (3, 40), (10, 1), (20, 40)])
def test_what_is_detectable_is_found_four_times_in_five(n, m):
    rng, repeats, deviation = np.random.default_rng(4), 20_000, 0.3
    effect = detectable(deviation, n, m)
    values = rng.normal(effect, deviation, size=(repeats, n))
    statistic = values.mean(1) / values.std(1, ddof=1) * n**0.5
    found = np.mean(2 * stats.t.sf(np.abs(statistic), n - 1) < 0.05 / m)
    assert found == pytest.approx(0.8, abs=4 * (0.8 * 0.2 / repeats) ** 0.5)


def test_two_seeds_detect_what_the_noncentral_distribution_says_and_no_spread_everything():
    quantile = stats.t.isf(0.025 / 7, 1)
    shift = detectable(2.0, 2, 7) * 2**0.5 / 2.0
    assert stats.nct.sf(quantile, 1, shift) == pytest.approx(0.8, abs=1e-4)
    assert detectable(0.0, 5) == 0
