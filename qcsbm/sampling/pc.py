r"""Predictor–corrector: reverse diffusion, with Langevin steps in between.

The chain x_k = a_k x_{k-1} + √v_k z from the data to the prior is `SDE.discretise`.
With s the score, z standard normal, r the signal-to-noise ratio and ‖·‖ a mean over the batch:

.. math::
   x_{k-1} = (2 - a_k) x_k + v_k s + \sqrt{v_k} z \quad \text{(predictor)} \\
   x \leftarrow x + \alpha s + \sqrt{2 \alpha} z, \quad
       \alpha = 2 a_k^2 (r \|z\| / \|s\|)^2 \quad \text{(corrector)}

The size of the corrector's steps comes from norms averaged over the batch: the batch belongs to the
protocol.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    Appendices E and G (Algorithms 2 to 5); https://arxiv.org/abs/2011.13456
    Adversarial score matching and improved sampling for image generation (Jolicoeur-Martineau et
    al., 2021), for the denoising at the end; https://arxiv.org/abs/2009.05475
"""

import math

import torch
from torch import Tensor

from qcsbm.conservativeness.asymmetry import Score
from qcsbm.sampling.base import Device, Samples, Shape, noise, without_tracking
from qcsbm.schema.samplers import PC
from qcsbm.score.sde import SDE


def predictor_step(
    score: Score, sde: SDE, x: Tensor, i: int, n: int, z: Tensor
) -> tuple[Tensor, Tensor]:
    """Step ``i`` of the ``n`` ≥ 2 predictor steps, from x_k to x_{k-1} with k = n − 1 − i.

    Returns the next state and its mean, the state without the noise ``z``; all shaped like
    ``x`` (B, ...). After the last step, i = n − 1, the mean is the denoised sample.
    """
    a, variance = sde.discretise(n - 1 - i, n)
    x_mean = (2 - a) * x + variance * score(x, _time(sde, x, i, n))
    return x_mean + math.sqrt(variance) * z, x_mean


def corrector_step(
    score: Score, sde: SDE, x: Tensor, i: int, n: int, snr: float, z: Tensor
) -> tuple[Tensor, Tensor]:
    """One corrector step before the predictor's step ``i`` of ``n``.

    Returns the next state and its mean, as `predictor_step` does.
    """
    a, _ = sde.discretise(n - 1 - i, n)
    s = score(x, _time(sde, x, i, n))
    alpha = 2 * a**2 * (snr * _mean_norm(z) / _mean_norm(s)) ** 2
    x_mean = x + alpha * s
    return x_mean + (2 * alpha).sqrt() * z, x_mean


@torch.no_grad()
def sample(
    score: Score,
    sde: SDE,
    shape: Shape,
    generator: torch.Generator,
    settings: PC,
    device: Device = "cpu",
) -> Samples:
    """A batch of ``shape`` (B, ...) by rounds of correctors, then predictor.

    The last predictor step returns its mean. The NFE is the number of predictor steps.

    Raises:
        Diverged: a sample is not finite.
    """
    score = without_tracking(score)
    steps = settings.steps
    x = sde.prior_std * noise(shape, generator, device)
    for i in range(steps):
        for _ in range(settings.corrector_steps):
            z = noise(shape, generator, device)
            x, _ = corrector_step(score, sde, x, i, steps, settings.snr, z)
        x, x_mean = predictor_step(score, sde, x, i, steps, noise(shape, generator, device))
    nfe = torch.full(shape[:1], steps, dtype=torch.float64)
    return Samples(x_mean, nfe, steps * (settings.corrector_steps + 1))


def _time(sde: SDE, x: Tensor, i: int, n: int) -> Tensor:
    """Time (B,) of step ``i``: the point ``i`` of ``n`` equidistant ones from 1 to epsilon."""
    return x.new_full((len(x),), float(torch.linspace(1, sde.epsilon, n, dtype=torch.float64)[i]))


def _mean_norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).mean()
