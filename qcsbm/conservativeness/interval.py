"""A mean with its standard error and its 95 % confidence interval."""

import math
from typing import NamedTuple

from scipy.special import stdtrit
from torch import Tensor

LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate from ``n`` independent samples; all but these two are None where n is 1."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int


def mean(values: Tensor) -> Interval:
    r"""The mean of independent ``values`` (n,) with Student's interval, corrected for skewness.

    Squared norms are skewed, and Student's interval then lies too low: means of few large values
    come with large errors. With :math:`T = (m - \mu) / s` and the sample skewness γ, the quantity

    .. math:: \sqrt n \, (T + \tfrac13 \gamma T^2 + \tfrac1{27} \gamma^2 T^3 + \tfrac1{6n} \gamma)

    is free of the skewness to first order, and increases with T. Its inverse at the quantiles of
    Student's distribution gives the interval, which is Student's where γ = 0.

    References:
        On the Removal of Skewness by Transformation (Hall, 1992)
    """
    n = len(values)
    values = values.double()
    value = float(values.mean())
    if n < 2:
        return Interval(value, None, None, None, n)
    deviation = float(values.std())
    standardised = (values - value) / values.std(correction=0)
    skewness = float(standardised.pow(3).mean()) if deviation > 0 else 0.0
    quantile = float(stdtrit(n - 1, (1 + LEVEL) / 2)) / math.sqrt(n)
    return Interval(
        value,
        deviation / math.sqrt(n),
        value - deviation * _without_skewness(quantile, skewness, n),
        value - deviation * _without_skewness(-quantile, skewness, n),
        n,
    )


def _without_skewness(y: float, skewness: float, n: int) -> float:
    """The T at which the transformed quantity is √n ``y``."""
    # The limit at 0, near which the quotient below is rounding.
    if abs(skewness) < 1e-6:
        return y
    return 3 / skewness * (math.cbrt(1 + skewness * (y - skewness / (6 * n))) - 1)
