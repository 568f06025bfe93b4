"""Means over seeds, how sure they are, and how large an effect has to be to be found.

References:
    A Simple Sequentially Rejective Multiple Test Procedure (Holm, 1979)
"""

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95
POWER = 0.8


def standard_error(values: np.ndarray) -> float | None:
    """Standard error of the mean of ``values`` (n,); a single value has none."""
    n = len(values)
    return float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else None


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Student's confidence interval of the mean of ``values`` (n,); None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    from scipy.special import stdtrit  # a third of the time in which jobs that gather start

    mean, stderr = float(np.mean(values)), float(np.std(values, ddof=1)) / n**0.5
    half_width = float(stdtrit(n - 1, (1 + level) / 2)) * stderr
    return mean - half_width, mean + half_width


def t_test(values: Sequence[float]) -> float | None:
    """The two-sided p of Student's test that the mean of ``values`` (n,) is 0; None below two.

    It is below 1 − `LEVEL` just where `t_interval` leaves out 0.
    """
    n = len(values)
    if n < 2:
        return None
    from scipy.special import stdtr

    mean, stderr = float(np.mean(values)), float(np.std(values, ddof=1)) / n**0.5
    if stderr == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(stdtr(n - 1, -abs(mean) / stderr))


def holm(p: Sequence[float], m: int | None = None) -> list[float]:
    """Those ``p`` of a family of ``m`` tests, adjusted so that its error is at most the level.

    Whatever depends on what: if everything below α is called an effect, one or more of them are
    none in at most a share α of all studies. ``m`` is larger than their number where some of the
    family could not be tested.
    """
    m = len(p) if m is None else m
    adjusted, least = [0.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        least = max(least, min(1.0, (m - rank) * p[index]))
        adjusted[index] = least
    return adjusted


def detectable(deviation: float, n: int, m: int = 1) -> float:
    """The mean that Student's test of ``n`` values finds with the probability `POWER`.

    Values have the standard deviation ``deviation``; the test is two-sided, one of a family of
    ``m``, and at the level (1 − `LEVEL`) / m, which Holm's procedure never falls below. With the
    right sign the statistic is above the quantile in `POWER` of all studies: it has Student's
    noncentral distribution.
    """
    from scipy.special import nctdtrinc, stdtrit

    quantile = stdtrit(n - 1, 1 - (1 - LEVEL) / (2 * m))
    return float(nctdtrinc(n - 1, 1 - POWER, quantile)) * deviation / n**0.5
