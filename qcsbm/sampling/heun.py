r"""The probability flow ODE by Heun's method, at noise levels chosen in advance.

In y = x / m(t), where every SDE has the flow dy/dσ = −σ ∇ log p(y; σ) (`qcsbm.sampling.base`), and
with d the slope, a step from σ_i to σ_{i+1} is

.. math::
   y' = y_i + (\sigma_{i+1} - \sigma_i) \, d(y_i, \sigma_i), \qquad
   y_{i+1} = y_i + (\sigma_{i+1} - \sigma_i) \,
       \tfrac12 \big(d(y_i, \sigma_i) + d(y', \sigma_{i+1})\big), \\
   \sigma_i = \Big(\sigma_{max}^{1/\rho} + \frac{i}{N - 1}
       \big(\sigma_{min}^{1/\rho} - \sigma_{max}^{1/\rho}\big)\Big)^{\rho}
       \quad (0 \le i < N), \qquad \sigma_N = 0.

σ_max and σ_min are those of the SDE at t = 1 and epsilon, since the score knows no others; Karras
et al. take 80 and 0.002, for networks trained on those. Of the last step, to σ = 0 where there is
no score, y' is the result: y + σ_min² ∇ log p, the denoising that other samplers end with.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    Algorithm 1 and Eq. 5; https://arxiv.org/abs/2206.00364
"""

from itertools import pairwise

import torch
from torch import Tensor

from qcsbm.conservativeness.asymmetry import Score
from qcsbm.sampling.base import (
    Device,
    Samples,
    Shape,
    noise,
    noise_range,
    relative_prior,
    relative_score,
    without_tracking,
)
from qcsbm.schema.samplers import Heun
from qcsbm.score.sde import SDE


def noise_levels(sde: SDE, steps: int, rho: float) -> list[float]:
    """The ``steps`` ≥ 2 noise levels, decreasing, and 0."""
    smallest, largest = (sigma ** (1 / rho) for sigma in noise_range(sde))
    return [
        *((largest + i / (steps - 1) * (smallest - largest)) ** rho for i in range(steps)),
        0.0,
    ]


def solve(score: Score, sde: SDE, y: Tensor, levels: list[float]) -> Tensor:
    """y at the last of the ``levels`` of noise from ``y`` (B, ...) at the first, like ``y``."""
    s = relative_score(score, sde)
    for sigma, sigma_next in pairwise(levels):
        slope = -sigma * s(y, sigma)
        y_next = y + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope = (slope - sigma_next * s(y_next, sigma_next)) / 2
            y_next = y + (sigma_next - sigma) * slope
        y = y_next
    return y


@torch.no_grad()
def sample(
    score: Score,
    sde: SDE,
    shape: Shape,
    generator: torch.Generator,
    settings: Heun,
    device: Device = "cpu",
) -> Samples:
    """A batch of ``shape`` (B, ...) by Heun's method in two calls a step, but for one in the last.

    Raises:
        Diverged: a sample is not finite.
    """
    y = relative_prior(sde, noise(shape, generator, device))
    levels = noise_levels(sde, settings.steps, settings.rho)
    x = solve(without_tracking(score), sde, y, levels)
    calls = 2 * settings.steps - 1
    return Samples(x, torch.full(shape[:1], calls, dtype=torch.float64), calls)
