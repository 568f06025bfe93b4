r"""Langevin dynamics, annealed over noise levels.

In y = x / m(t), the data with noise of level σ added (`qcsbm.sampling.base`), with z standard
normal:

.. math:: y \leftarrow y + \alpha \nabla \log p(y; \sigma) + \sqrt{2 \alpha} z, \qquad
   \alpha = \eta \sigma^2,

a number of times at each of L noise levels, in geometric progression from that of t = 1 to that of
epsilon, starting from the prior. At the end the noise of the last level is taken away, as other
samplers do it. The step size η is relative to the noise: Song and Ermon's ε is 2 η σ_L², and theirs
of 2·10⁻⁵ is η = 0.1. With L = 1 this is Eq. 3 of the paper at the smallest level, whose chain has a
long way to go from the prior, and does not move between distant modes.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Eq. 3; https://arxiv.org/abs/2209.12753
    Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019),
    Algorithm 1; https://arxiv.org/abs/1907.05600
"""

import math

import torch

from qcsbm.conservativeness.asymmetry import Score
from qcsbm.sampling.base import (
    Device,
    Samples,
    Shape,
    noise_range,
    relative_prior,
    relative_score,
    without_tracking,
)
from qcsbm.sampling.noises import noises
from qcsbm.schema.samplers import Langevin
from qcsbm.score.sde import SDE


def noise_levels(sde: SDE, n: int) -> list[float]:
    """The ``n`` noise levels, decreasing; of one, the smallest."""
    smallest, largest = map(math.log, noise_range(sde))
    return torch.linspace(smallest, largest, n, dtype=torch.float64).exp().flip(0).tolist()


@torch.no_grad()
def sample(
    score: Score,
    sde: SDE,
    shape: Shape,
    generator: torch.Generator,
    settings: Langevin,
    device: Device = "cpu",
) -> Samples:
    """A batch of ``shape`` (B, ...) by Langevin dynamics, then denoised.

    Raises:
        Diverged: a sample is not finite.
    """
    s = relative_score(without_tracking(score), sde)
    levels = noise_levels(sde, settings.noise_levels)
    steps = settings.noise_levels * settings.steps_per_level
    with noises(1 + steps, shape, generator, device) as draws:
        y = relative_prior(sde, next(draws))
        for sigma in levels:
            alpha = settings.step_size * sigma**2
            for _ in range(settings.steps_per_level):
                y = y + alpha * s(y, sigma) + math.sqrt(2 * alpha) * next(draws)
    x = y + levels[-1] ** 2 * s(y, levels[-1])
    calls = steps + 1
    return Samples(x, torch.full(shape[:1], calls, dtype=torch.float64), calls)
