"""The probability flow ODE, from the prior to the data, with a step size for each sample.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    Section 4.3 and Appendix D; https://arxiv.org/abs/2011.13456
"""

import torch
from torch import Tensor

from qcsbm.conservativeness.asymmetry import Score
from qcsbm.sampling.base import Device, Samples, Shape, noise, without_tracking
from qcsbm.sampling.solver import integrate
from qcsbm.schema.samplers import ODE
from qcsbm.score.sde import SDE


@torch.no_grad()
def sample(
    score: Score,
    sde: SDE,
    shape: Shape,
    generator: torch.Generator,
    settings: ODE,
    device: Device = "cpu",
) -> Samples:
    """A batch of ``shape`` (B, ...) by the probability flow ODE, then denoised.

    Under the VE SDE the last predictor step denoises, as in the paper's protocol. That one call is
    in ``network_calls`` and not in ``nfe``.

    Raises:
        Diverged: a sample is not finite; or see `qcsbm.sampling.solver.integrate`.
    """
    score = without_tracking(score)

    def flow(t: Tensor, x: Tensor) -> Tensor:
        s = score(x.unflatten(1, shape[1:]), t).flatten(1)
        return sde.probability_flow(s, x, t)

    x = sde.prior_std * noise(shape, generator, device)
    solution = integrate(flow, x.flatten(1), 1.0, sde.epsilon, settings.rtol, settings.atol)
    x = solution.y.view(shape)
    x = sde.denoise(score(x, x.new_full(shape[:1], sde.epsilon)), x)
    nfe = solution.nfe.double()
    return Samples(x, nfe, float(nfe.mean()) + 1)
