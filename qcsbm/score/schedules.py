r"""How much noise there is at time t: x_t = α(t) x_0 + σ(t) z with z standard normal.

``mean`` is α and ``std`` is σ, as in `qcsbm.score.sde`, whose SDEs are schedules.
"""

from typing import Protocol

from torch import Tensor


class Schedule(Protocol):
    """Functions of time (B,), of its shape and dtype."""

    def mean(self, t: Tensor) -> Tensor:
        """α(t), what is left of the data."""

    def std(self, t: Tensor) -> Tensor:
        """σ(t), the standard deviation of the noise."""
