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
    """The mean of independent ``values`` (n,) with Student's interval."""
    n = len(values)
    value = float(values.double().mean())
    if n < 2:
        return Interval(value, None, None, None, n)
    stderr = float(values.double().std()) / math.sqrt(n)
    half_width = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stderr
    return Interval(value, stderr, value - half_width, value + half_width, n)
