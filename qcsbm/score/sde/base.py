r"""What every SDE offers: its perturbation kernel, its coefficients, its prior and its steps.

.. math:: dx = f(x, t) \, dt + g(t) \, dw, \qquad f(x, t) = c(t) \, x, \qquad
   p(x_t \mid x_0) = N(m(t) x_0, \mathrm{std}(t)^2 I), \qquad t \in [\epsilon, 1],

so that m' = c m and (std²)' = 2 c std² + g². All functions of time take a tensor and return one of
its shape and dtype.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    Sections 3 and 4, Appendices B, D and E; https://arxiv.org/abs/2011.13456
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class SDE(ABC):
    """An SDE with affine drift on data in [0, 1].

    Times below ``epsilon`` are never visited: the SDE is integrated and trained on [epsilon, 1].
    """

    epsilon: float

    @abstractmethod
    def mean(self, t: Tensor) -> Tensor:
        """m(t), what is left of the data."""

    @abstractmethod
    def std(self, t: Tensor) -> Tensor:
        """std(t), the standard deviation of the noise."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """std(t) / m(t), the noise level relative to the data."""

    @abstractmethod
    def time(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`."""

    @abstractmethod
    def drift_coefficient(self, t: Tensor) -> Tensor:
        """c(t) of the drift c(t) x."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """g(t)."""

    @property
    @abstractmethod
    def prior_std(self) -> float:
        """The standard deviation of the prior, N(0, prior_std² I), which p_1 is close to."""

    @abstractmethod
    def discretise(self, k: int, n: int) -> tuple[float, float]:
        """a and v of step ``k`` in 0 … n − 1 of a chain from the data to the prior in n ≥ 2 steps.

        Step k is x_k = a x_{k−1} + √v z with z standard normal; x_{−1} is a data point.
        """

    @property
    def t_min(self) -> float:
        """The smallest time that has noise in it, at which there is still a score."""
        return self.epsilon

    def marginal_prob(self, x_0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, ...) and standard deviation (B,) of p(x_t | x_0) for x_0 (B, ...), t (B,)."""
        return bcast(self.mean(t), x_0) * x_0, self.std(t)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(x, t) for x (B, ...) and t (B,); shaped like x."""
        return bcast(self.drift_coefficient(t), x) * x

    def probability_flow(self, s: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """f(x, t) − ½ g(t)² s for the score s at x, both (B, ...), and t (B,); shaped like x.

        It is linear in s and x together. Its divergence is therefore the same expression of their
        divergences, those of s and of x itself, which is D (Eq. 13).
        """
        return self.drift(x, t) - 0.5 * bcast(self.diffusion(t), x) ** 2 * s

    def denoise(self, s: Tensor, x: Tensor) -> Tensor:
        """The mean of x_0 given x_t at the end of a sampler, by Tweedie's formula; like x.

        ``x`` (B, ...) is taken to have the noise of `t_min`; ``s`` (B, ...) is its score.

        References:
            Tweedie's Formula and Selection Bias (Efron, 2011)
        """
        t = torch.tensor(self.t_min, dtype=torch.float64)
        return (x + float(self.std(t)) ** 2 * s) / float(self.mean(t))

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log density of the prior in nats at ``x`` (B, ...); shape (B,)."""
        d = x[0].numel()
        squared_norm = x.flatten(1).square().sum(1)
        return -d / 2 * math.log(2 * math.pi * self.prior_std**2) - squared_norm / (
            2 * self.prior_std**2
        )


def bcast(a: Tensor, x: Tensor) -> Tensor:
    """``a`` of shape (B,) with trailing unit dimensions, so that it broadcasts against ``x``."""
    return a.reshape(-1, *(1,) * (x.dim() - 1))
