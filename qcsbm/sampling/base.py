r"""What samplers share: their result, their noise, and the score as they call it.

A score is a function of x (B, ...) and t (B,), shaped like x. Every module of a sampler has a
function ``sample``, which takes one, the SDE, the shape (B, ...) of a batch, a generator and the
settings of its type (`qcsbm.schema.samplers`).

With m and std the coefficients of the perturbation kernel, y = x / m(t) is the data with noise of
level σ = std / m added: in y every SDE is variance-exploding. With s the score of x, that of y and
the probability flow are

.. math:: \nabla \log p(y; \sigma) = m(t) \, s(m(t) y, t), \qquad
   \frac{dy}{d\sigma} = -\sigma \nabla \log p(y; \sigma).

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), Eq. 4
    and Appendix B; https://arxiv.org/abs/2206.00364
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qcsbm.conservativeness.asymmetry import Score
from qcsbm.runtime.errors import Diverged
from qcsbm.score.models import ScoreModel
from qcsbm.score.sde import SDE

Shape = tuple[int, ...]
Device = str | torch.device


@dataclass(frozen=True)
class Samples:
    """Samples in the units of the data, shape (B, ...), and what they cost.

    ``nfe`` (B,) is the count that tables show: all evaluations of the score, or, for the samplers
    of the paper, what it counts. ``network_calls`` counts all evaluations of the score at a sample,
    the mean over samples.

    Raises:
        Diverged: a sample is not finite.
    """

    x: Tensor
    nfe: Tensor
    network_calls: float

    def __post_init__(self) -> None:
        finite = self.x.flatten(1).isfinite().all(1)
        if not finite.all():
            raise Diverged(
                f"sampling diverged: {int((~finite).sum())} of {len(finite)} samples are not finite"
            )


def noise(shape: Shape, generator: torch.Generator, device: Device) -> Tensor:
    """Standard normal draws, float32, from the CPU: they do not depend on the device."""
    return torch.randn(shape, generator=generator).to(device)


def without_tracking(score: Score) -> Score:
    """U's ``score`` under inference mode; any other one may need autograd for its own gradient."""
    return torch.inference_mode()(score) if type(score) is ScoreModel else score


def relative_score(score: Score, sde: SDE) -> Callable[[Tensor, float], Tensor]:
    """The score at y (B, ...) of the data with noise of level σ."""

    def at(y: Tensor, sigma: float) -> Tensor:
        t = sde.time(torch.tensor(sigma, dtype=torch.float64))
        mean = float(sde.mean(t))
        return mean * score(mean * y, y.new_full((len(y),), float(t)))

    return at


def relative_prior(sde: SDE, z: Tensor) -> Tensor:
    """y at t = 1, by standard normal ``z``."""
    mean = float(sde.mean(torch.tensor(1.0, dtype=torch.float64)))
    return sde.prior_std / mean * z


def noise_range(sde: SDE) -> tuple[float, float]:
    """σ at times epsilon and 1: the noise that the score is trained on."""
    smallest, largest = sde.sigma(torch.tensor([sde.epsilon, 1.0], dtype=torch.float64)).tolist()
    return smallest, largest
