r"""Samplers: Langevin dynamics, predictor–corrector, and the probability flow ODE.

With s the score, z standard normal, and a and v of step k of the SDE's chain:

.. math::
   x \leftarrow x + \alpha s + \sqrt{2 \alpha} z
       \quad \text{(Langevin, Eq. 3 of the paper)} \\
   x \leftarrow (2 - a) x + v s + \sqrt{v} z
       \quad \text{(reverse diffusion)} \\
   dx = (f - \tfrac12 g(t)^2 s) \, dt, \quad t: 1 \to \epsilon \quad \text{(probability flow)}

A score is a function of x (B, ...) and t (B,), shaped like x. Noise is drawn in float32 on the CPU
and then moved, so that it does not depend on the device. The size of the corrector's steps comes
from norms averaged over the batch: the batch belongs to the predictor–corrector protocol.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Eq. 3; https://arxiv.org/abs/2209.12753
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    Eq. 13, Appendices E and G (Algorithms 2 and 4); https://arxiv.org/abs/2011.13456
    Adversarial score matching and improved sampling for image generation (Jolicoeur-Martineau et
    al., 2021), for the denoising at the end; https://arxiv.org/abs/2009.05475
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qcsbm.conservativeness.asymmetry import Score
from qcsbm.runtime.errors import Diverged
from qcsbm.sampling.solver import integrate
from qcsbm.score.models import ScoreModel
from qcsbm.score.sde import SDE


@dataclass(frozen=True)
class Samples:
    """Samples in the units of the data, shape (B, ...), and what they cost.

    ``nfe`` (B,) is the count that the paper's tables show: predictor steps of the
    predictor–corrector sampler, or evaluations in the ODE. ``network_calls`` counts all evaluations
    of the score at a sample, the mean over samples.
    """

    x: Tensor
    nfe: Tensor
    network_calls: float


def reverse_diffusion_step(
    score: Score, sde: SDE, x: Tensor, i: int, n: int, z: Tensor
) -> tuple[Tensor, Tensor]:
    """Step ``i`` of the ``n`` ≥ 2 predictor steps, back from x_k to x_{k-1} with k = n − 1 − i.

    Returns the next state and its mean, the state without the noise ``z``; all shaped like
    ``x`` (B, ...). After the last step, i = n − 1, the mean is the denoised sample.
    """
    a, v = sde.discretise(n - 1 - i, n)
    x_mean = (2 - a) * x + v * score(x, _time(sde, x, i, n))
    return x_mean + math.sqrt(v) * z, x_mean


def langevin_step(
    score: Score, x: Tensor, t: Tensor, snr: float, z: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """One corrector step at time ``t`` (B,), of size 2 · scale · (snr · mean‖z‖ / mean‖s‖)².

    The means run over the batch. Returns the next state and its mean, as
    `reverse_diffusion_step` does.
    """
    s = score(x, t)
    alpha = 2 * scale * (snr * _mean_norm(z) / _mean_norm(s)) ** 2
    x_mean = x + alpha * s
    return x_mean + (2 * alpha).sqrt() * z, x_mean


@torch.no_grad()
def langevin_dynamics(
    score: Score, x: Tensor, t: Tensor, alpha: float, steps: int, generator: torch.Generator
) -> Tensor:
    """``x`` (B, ...) after ``steps`` Langevin steps of size ``alpha`` at fixed times ``t`` (B,)."""
    for _ in range(steps):
        z = torch.randn(x.shape, generator=generator).to(x)
        x = x + alpha * score(x, t) + math.sqrt(2 * alpha) * z
    return x


@torch.no_grad()
def pc_sample(
    score: Score,
    sde: SDE,
    shape: tuple[int, ...],
    generator: torch.Generator,
    steps: int,
    snr: float,
    corrector_steps: int = 1,
    denoise: bool = True,
    device: str | torch.device = "cpu",
) -> Samples:
    """A batch of ``shape`` (B, ...) by ``steps`` ≥ 2 rounds of corrector, then predictor.

    The last predictor step returns its mean, free of the last noise, if ``denoise``.

    Raises:
        Diverged: a sample is not finite.
    """

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    if steps < 2:
        raise ValueError(f"steps: found {steps}, expected at least 2")
    score = _without_tracking(score)
    x = sde.prior_std * noise()
    for i in range(steps):
        t = _time(sde, x, i, steps)
        a, _ = sde.discretise(steps - 1 - i, steps)
        for _ in range(corrector_steps):
            x, _ = langevin_step(score, x, t, snr, noise(), a**2)
        x, x_mean = reverse_diffusion_step(score, sde, x, i, steps, noise())
    if denoise:
        x = x_mean
    finite = x.flatten(1).isfinite().all(1)
    if not finite.all():
        raise Diverged(
            f"the predictor-corrector sampler diverged: {int((~finite).sum())} of {len(x)} samples "
            "are not finite"
        )
    nfe = torch.full(shape[:1], steps, dtype=torch.float64)
    return Samples(x, nfe, steps * (corrector_steps + 1))


@torch.no_grad()
def ode_sample(
    score: Score,
    sde: SDE,
    shape: tuple[int, ...],
    generator: torch.Generator,
    rtol: float,
    atol: float,
    denoise: bool = True,
    device: str | torch.device = "cpu",
) -> Samples:
    """A batch of ``shape`` (B, ...) by the probability flow ODE, each sample with its own steps.

    The end is denoised, under the VE SDE by the last predictor step as in the paper's protocol;
    that one call is in ``network_calls`` and not in ``nfe``.

    Raises:
        Diverged: see `qcsbm.sampling.solver.integrate`.
    """

    score = _without_tracking(score)

    def flow(t: Tensor, x: Tensor) -> Tensor:
        s = score(x.unflatten(1, shape[1:]), t).flatten(1)
        return sde.probability_flow(s, x, t)

    x = sde.prior_std * torch.randn(shape, generator=generator).to(device)
    solution = integrate(flow, x.flatten(1), 1.0, sde.epsilon, rtol, atol)
    x = solution.y.view(shape)
    if denoise:
        x = sde.denoise(score(x, x.new_full(shape[:1], sde.epsilon)), x)
    nfe = solution.nfe.double()
    return Samples(x, nfe, float(nfe.mean()) + denoise)


def _without_tracking(score: Score) -> Score:
    """U's ``score`` under inference mode; any other one may need autograd for its own gradient."""
    return torch.inference_mode()(score) if type(score) is ScoreModel else score


def _time(sde: SDE, x: Tensor, i: int, n: int) -> Tensor:
    """Time (B,) of step ``i``: the point ``i`` of ``n`` equidistant ones from 1 to epsilon."""
    return x.new_full((len(x),), float(torch.linspace(1, sde.epsilon, n, dtype=torch.float64)[i]))


def _mean_norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).mean()
