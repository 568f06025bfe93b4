"""Intervals of means over seeds."""

import numpy as np
import pytest
from scipy import stats

from qcsbm.report.intervals import t_interval


def test_interval_is_that_of_scipy():
    values = [1.0, 4.0, 2.5, 3.0]
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((low, high))


def test_fewer_than_two_values_have_no_interval():
    assert t_interval([]) is None and t_interval([3.0]) is None


def test_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    covered = np.mean([low < 0 < high for low, high in map(t_interval, draws)])
    # Four standard errors of a share of 0.95 among 2 000.
    assert covered == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 2000) ** 0.5)
