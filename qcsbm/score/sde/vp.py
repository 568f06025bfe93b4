r"""The variance-preserving SDE, whose discretisation are denoising diffusion models.

.. math:: dx = -\tfrac12 \beta(t) x \, dt + \sqrt{\beta(t)} \, dw, \qquad
   \beta(t) = \beta_{min} + t (\beta_{max} - \beta_{min}), \qquad B(t) = \int_0^t \beta,

with :math:`p(x_t \mid x_0) = N(e^{-B(t)/2} x_0, (1 - e^{-B(t)}) I)`. There is no noise at t = 0,
and no score.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    Eqs. 11, 32 and 33; https://arxiv.org/abs/2011.13456
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qcsbm.score.sde.base import SDE


@dataclass(frozen=True)
class VP(SDE):
    """The VP SDE, whose rate of noise β grows from ``beta_min`` to ``beta_max``."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    epsilon: float = 1e-5

    def beta(self, t: Tensor) -> Tensor:
        """β(t)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Tensor) -> Tensor:
        """B(t)."""
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)

    def mean(self, t: Tensor) -> Tensor:
        return (-self.integral(t) / 2).exp()

    def std(self, t: Tensor) -> Tensor:
        return (-(-self.integral(t)).expm1()).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return self.integral(t).expm1().sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return self.time_of(sigma.square().log1p())

    def time_of(self, integral: Tensor) -> Tensor:
        """The inverse of B(t)."""
        # The root of B(t) in the form that does not cancel at small B.
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return 2 * integral / (self.beta_min + root)

    def drift_coefficient(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.beta(t).sqrt()

    @property
    def prior_std(self) -> float:
        return 1.0

    def discretise(self, k: int, n: int) -> tuple[float, float]:
        """The SDE's own transitions between ``n`` equidistant times from epsilon to 1.

        The published chain has v = β/n, which is the same for large n and is no variance below
        a = √(1 − v) once n < beta_max.
        """
        t = torch.linspace(self.epsilon, 1, n, dtype=torch.float64)
        integral = torch.cat([torch.zeros(1, dtype=torch.float64), self.integral(t)])
        step = integral[k + 1] - integral[k]
        return float((-step / 2).exp()), float(-(-step).expm1())
