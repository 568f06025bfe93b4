"""Means over seeds and how sure they are."""

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95


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
