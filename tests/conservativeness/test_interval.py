"""Confidence intervals of a mean, against simulation and formulas."""

import math

import pytest
import torch
from scipy import stats

from qcsbm.conservativeness.interval import mean
from qcsbm.runtime.seeding import generator


def test_symmetric_values_have_students_interval():
    values = torch.tensor([-3.0, -1.0, 1.0, 3.0]) + 10
    interval = mean(values)
    low, high = stats.t.interval(0.95, 3, 10, values.std() / 2)
    assert interval.value == 10 and interval.n == 4
    assert interval.stderr == pytest.approx(float(values.std()) / 2)
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_ends_are_where_the_transformed_quantity_has_students_quantiles():
    values = torch.randn(12, dtype=torch.float64, generator=generator(0, "skewed")).exp()
    interval = mean(values)
    n, deviation = 12, float(values.std())
    skewness = stats.skew(values.numpy())
    for end, sign in ((interval.low, 1), (interval.high, -1)):
        t = (interval.value - end) / deviation
        transformed = t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / (6 * n)
        assert math.sqrt(n) * transformed == pytest.approx(sign * stats.t.ppf(0.975, n - 1))
    assert interval.high - interval.value > interval.value - interval.low > 0


@pytest.mark.parametrize("value", [0.0, 0.1, 1e300])
def test_equal_values_leave_no_error(value):
    found = mean(torch.full((3,), value, dtype=torch.float64))
    assert found[:4] == pytest.approx((value, 0, value, value), abs=1e-15)


def test_one_value_has_no_error_and_small_ones_do_not_underflow():
    assert mean(torch.tensor([2.0])) == (2.0, None, None, None, 1)
    values = torch.tensor([1.0, 2.0, 7.0], dtype=torch.float64)
    assert mean(1e-200 * values).high == pytest.approx(1e-200 * mean(values).high)


def test_interval_of_a_skewed_mean_covers_it_where_students_does_not():
    # Exponential values are those of one probe where all rotation is in one plane.
    repetitions, n = 4000, 16
    values = torch.empty(repetitions, n, dtype=torch.float64)
    values.exponential_(generator=generator(0, "exponential"))
    intervals = [mean(row) for row in values]
    covered = sum(i.low <= 1 <= i.high for i in intervals) / repetitions
    half_width = stats.t.ppf(0.975, n - 1)
    student = sum(abs(i.value - 1) <= half_width * i.stderr for i in intervals) / repetitions
    # One in 95 % of 4 000 repetitions has a standard deviation of 0.34 %.
    assert abs(covered - 0.95) < 0.015 and student < 0.93
