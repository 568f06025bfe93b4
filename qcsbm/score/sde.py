r"""The variance-exploding SDE.

.. math:: dx = g(t) \, dw, \qquad \sigma(t) = \sigma_{min} (\sigma_{max} / \sigma_{min})^t,
   \qquad g(t) = \sigma(t) \sqrt{2 \log(\sigma_{max} / \sigma_{min})},

with :math:`p(x_t \mid x_0) = N(x_0, \sigma(t)^2 I)` and :math:`t \in [\epsilon, 1]`.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    Eq. 9 and Appendix C; https://arxiv.org/abs/2011.13456
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VESDE:
    """The VE SDE on data in [0, 1], from noise scale ``sigma_min`` to ``sigma_max``.

    Times below ``epsilon`` are never visited: the SDE is integrated and trained on [epsilon, 1].
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    epsilon: float = 1e-5

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale of the perturbation kernel at time ``t``; same shape as ``t``."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def marginal_prob(self, x_0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, ...) and standard deviation (B,) of p(x_t | x_0) for x_0 (B, ...), t (B,)."""
        return x_0, self.sigma(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """Diffusion coefficient g(t); same shape as ``t``."""
        return self.sigma(t) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))

    def discrete_sigmas(self, n: int) -> Tensor:
        """The ``n`` noise scales of the SMLD discretisation, increasing, shape (n,), float64."""
        return torch.linspace(
            math.log(self.sigma_min), math.log(self.sigma_max), n, dtype=torch.float64
        ).exp()

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats of N(0, sigma_max² I) at ``x`` (B, ...); shape (B,)."""
        d = x[0].numel()
        squared_norm = x.flatten(1).square().sum(1)
        return -d / 2 * math.log(2 * math.pi * self.sigma_max**2) - squared_norm / (
            2 * self.sigma_max**2
        )


def bcast(a: Tensor, x: Tensor) -> Tensor:
    """``a`` of shape (B,) with trailing unit dimensions, so that it broadcasts against ``x``."""
    return a.reshape(-1, *(1,) * (x.dim() - 1))
