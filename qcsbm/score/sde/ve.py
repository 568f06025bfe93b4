r"""The variance-exploding SDE.

.. math:: dx = g(t) \, dw, \qquad \sigma(t) = \sigma_{min} (\sigma_{max} / \sigma_{min})^t,
   \qquad g(t) = \sigma(t) \sqrt{2 \log(\sigma_{max} / \sigma_{min})},

with :math:`p(x_t \mid x_0) = N(x_0, \sigma(t)^2 I)`.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    Eq. 9 and Appendix C; https://arxiv.org/abs/2011.13456
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qcsbm.score.sde.base import SDE


@dataclass(frozen=True)
class VE(SDE):
    """The VE SDE, from noise scale ``sigma_min`` to ``sigma_max``."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    epsilon: float = 1e-5

    def mean(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def std(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def sigma(self, t: Tensor) -> Tensor:
        return self.std(t)

    def time(self, sigma: Tensor) -> Tensor:
        return (sigma / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)

    def drift_coefficient(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.std(t) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def t_min(self) -> float:
        """Noise of scale sigma_min is part of p_0."""
        return 0.0

    def discretise(self, k: int, n: int) -> tuple[float, float]:
        """The SMLD chain: noise is added from one scale of `discrete_sigmas` to the next."""
        sigma = torch.cat([torch.zeros(1, dtype=torch.float64), self.discrete_sigmas(n)])
        return 1.0, float(sigma[k + 1] ** 2 - sigma[k] ** 2)

    def discrete_sigmas(self, n: int) -> Tensor:
        """The ``n`` noise scales of the SMLD discretisation, increasing, shape (n,), float64."""
        return torch.linspace(
            math.log(self.sigma_min), math.log(self.sigma_max), n, dtype=torch.float64
        ).exp()
