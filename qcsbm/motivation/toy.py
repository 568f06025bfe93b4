r"""Two-dimensional examples: C, U and QC against the exact score of the noised data.

Data x_0 are perturbed to x = x_0 + σ_t z with σ from 0.1 to 3. Where the data are an even mixture
of Gaussians with centres μ_i and variance v, a finite set of points being the case v = 0, the
density of x and its score are known exactly:

.. math:: p_\sigma(x) = \frac1M \sum_i N(x; \mu_i, (v + \sigma^2) I), \qquad
   \nabla \log p_\sigma(x) = \frac{\sum_i w_i(x) \mu_i - x}{v + \sigma^2},

with weights w proportional to the terms of the mixture. All methods share the network, its initial
weights, the batches and the noise of a seed. QC is trained from scratch for as many steps as U, not
fine-tuned from it as on images, on

.. math:: \tfrac12 \|\sigma_t s(x, t) + z\|^2 + \lambda \sigma_t^2 \tfrac12 \|J - J^T\|_F^2

with L_QC exact, as it can be in the plane.

With σ_max = 3 below the extent of the data, N(0, σ_max² I) is a poor stand-in for p_σ at t = 1. The
sampler and the likelihood therefore take the distribution at t = 1 as an argument: the noised
data's own, to see the score's error alone, or `GAUSSIAN_PRIOR`.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Section 3.2; https://arxiv.org/abs/2209.12753
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from qcsbm.conservativeness.asymmetry import Score, exact_asymmetry
from qcsbm.conservativeness.products import jacobian
from qcsbm.nets.mlp import MLP
from qcsbm.runtime.seeding import derive, generator
from qcsbm.sampling.likelihood import log_likelihood
from qcsbm.sampling.solver import integrate
from qcsbm.score.losses import training_loss
from qcsbm.score.models import PARAMETERISATIONS, ScoreModel
from qcsbm.score.sde import VE

SDE = VE(sigma_min=0.1, sigma_max=3.0)
LEARNING_RATE = 7.5e-4
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Method:
    """A parameterisation of the score and the weight λ of L_QC in its training."""

    parameterisation: str
    weight: float = 0.0


METHODS = {"c": Method("energy"), "u": Method("score"), "qc": Method("score", weight=0.1)}


@dataclass(frozen=True)
class Mixture:
    """An even mixture of Gaussians of one ``variance`` around ``centres`` (M, 2), float64."""

    centres: Tensor
    variance: float = 0.0

    def sample(self, sigma: Tensor, generator: torch.Generator) -> Tensor:
        """One point, noised by ``sigma``, for each entry of ``sigma`` (B,); (B, 2), float64."""
        i = torch.randint(len(self.centres), sigma.shape, generator=generator)
        z = torch.randn(*sigma.shape, 2, generator=generator, dtype=torch.float64)
        return self.centres[i] + (self.variance + sigma**2).sqrt()[:, None] * z

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p_σ in nats at ``x`` (B, 2) for ``sigma`` (B,), both float64; (B,)."""
        variance = self.variance + sigma**2
        log_sum = torch.cat([e.logsumexp(1) for e in self._exponents(x, variance)])
        return log_sum - (2 * math.pi * variance * len(self.centres)).log()

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """∇ log p_σ at ``x`` (B, 2) for ``sigma`` (B,), both float64; (B, 2)."""
        variance = self.variance + sigma**2
        mean = torch.cat([e.softmax(1) @ self.centres for e in self._exponents(x, variance)])
        return (mean - x) / variance[:, None]

    def _exponents(self, x: Tensor, variance: Tensor) -> Iterator[Tensor]:
        """−‖x − μ_i‖² / 2v (b, M) for successive chunks of rows: 64 MB at a time."""
        rows = max(1, 2**23 // len(self.centres))
        for x_chunk, v in zip(x.split(rows), variance.split(rows), strict=True):
            distance = torch.cdist(
                x_chunk, self.centres, compute_mode="donot_use_mm_for_euclid_dist"
            )
            yield distance.square() / (-2 * v[:, None])


GAUSSIAN_PRIOR = Mixture(torch.zeros(1, 2, dtype=torch.float64))


def eight_centres() -> Tensor:
    """The centres of the 8-Gaussian mixture, on a circle of radius 8/√2; (8, 2), float64."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return 8 / math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)


def eight_gaussians(n: int, generator: torch.Generator) -> Tensor:
    """Even mixture of 8 Gaussians of standard deviation 1/√2; (n, 2), float64."""
    sigma = torch.zeros(n, dtype=torch.float64)
    return Mixture(eight_centres(), variance=0.5).sample(sigma, generator)


def spirals(n: int, generator: torch.Generator) -> Tensor:
    """Two arms of 1.5 turns, even in area, with uniform jitter of width 0.5; (n, 2), float64.

    The scale of 2.3/3 includes the jitter, which lies on one side of an arm: the arms are images
    of each other under x → −x.
    """
    turn = 3 * math.pi * _uniform((n,), generator).sqrt()
    arm = turn[:, None] * torch.stack([-turn.cos(), turn.sin()], 1)
    arm = arm + 0.5 * _uniform((n, 2), generator)
    sign = 1 - 2 * torch.randint(2, (n, 1), generator=generator)
    return 2.3 / 3 * sign * arm


def checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """Uniform on the 8 dark squares, of side 3, of a board on [−6, 6]²; (n, 2), float64."""
    x_1 = 4 * _uniform((n,), generator) - 2
    row = -2 * torch.randint(2, (n,), generator=generator) + x_1.floor() % 2
    return 3 * torch.stack([x_1, row + _uniform((n,), generator)], 1)


DATASETS = {"8-gaussian": eight_gaussians, "spirals": spirals, "checkerboard": checkerboard}


def oracle(dataset: str, points: Tensor) -> Mixture:
    """The density to compare with: the true one of 8-Gaussian, else that of ``points`` (N, 2)."""
    if dataset == "8-gaussian":
        return Mixture(eight_centres(), variance=0.5)
    return Mixture(points)


def objective(model: ScoreModel, x_0: Tensor, t: Tensor, z: Tensor, weight: float) -> Tensor:
    """DSM with weight σ² plus ``weight`` · σ² · L_QC of each sample; (B,).

    ``x_0`` and ``z`` are (B, 2), ``t`` is (B,). L_QC is exact: in the plane J − Jᵀ is a multiple of
    a rotation by 90°, so that ½‖(J − Jᵀ)v‖² is the same for every v with entries ±1.
    """
    probes = torch.ones_like(z)[None] if weight else None
    loss = training_loss(model, x_0, t, z, probes, "antisymmetric")
    return loss.dsm if loss.qc is None else loss.dsm + weight * loss.qc


def build(method: Method, seed: int) -> ScoreModel:
    """The model with its initial weights, float32: the same for every method of a seed.

    The score is made from f, not from Eq. 10's x − f: in 2 000 steps on 8-Gaussian with batches of
    500, over three seeds, the score error of U came out 2 to 14 times lower so at every noise
    level, and that of C lower on average.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "toy", "init"))
        return PARAMETERISATIONS[method.parameterisation](MLP(), SDE)


def train(method: Method, points: Tensor, steps: int, batch: int, seed: int) -> ScoreModel:
    """A model fitted to ``points`` (N, 2) by Adam, with the gradient's norm clipped to 1.

    Batches are drawn with replacement. Training is in float32; the model is returned in float64,
    for evaluation. The paper takes 2 000 to 4 000 steps with batches of 5 000.
    """
    model = build(method, seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    points = points.float()
    rng = generator(seed, "toy", "train")
    for _ in range(steps):
        x_0 = points[torch.randint(len(points), (batch,), generator=rng)]
        t = SDE.epsilon + (1 - SDE.epsilon) * torch.rand(batch, generator=rng)
        z = torch.randn(batch, 2, generator=rng)
        optimiser.zero_grad()
        objective(model, x_0, t, z, method.weight).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimiser.step()
    return model.double().eval()


@dataclass(frozen=True)
class NoisedPoints:
    """Noised points ``x`` and their exact scores ``score`` (L, N, 2) at the times ``t`` (L,)."""

    t: Tensor
    x: Tensor
    score: Tensor


def noised_points(density: Mixture, n: int, seed: int, levels: int = 10) -> NoisedPoints:
    """``n`` points of the noised ``density`` at each of ``levels`` even times in [epsilon, 1].

    The one expensive part of the evaluation, so that all methods should share it.
    """
    t = torch.linspace(SDE.epsilon, 1, levels, dtype=torch.float64)
    sigma = SDE.sigma(t)[:, None].expand(levels, n).flatten()
    x = density.sample(sigma, generator(seed, "toy", "test"))
    shape = (levels, n, 2)
    return NoisedPoints(t, x.view(shape), density.score(x, sigma).view(shape))


def evaluate(model: Score, test: NoisedPoints) -> pd.DataFrame:
    """Errors of a float64 ``model`` at the ``test`` points: one row per noise level.

    Columns: t, sigma; score_error (½‖s − ∇log p_σ‖²), asym and nasym (from the exact Jacobian),
    each a mean over points; and the standard error of each in the column with suffix _se.
    """
    rows = []
    for t, x, exact in zip(test.t, test.x, test.score, strict=True):
        times = t.expand(len(x))
        with torch.no_grad():
            score_error = (model(x, times) - exact).square().sum(1) / 2
        asym, nasym = exact_asymmetry(model, x, times)
        row = {"t": t.item(), "sigma": SDE.sigma(t).item()}
        for name, values in (("score_error", score_error), ("asym", asym), ("nasym", nasym)):
            row[name] = values.mean().item()
            row[f"{name}_se"] = (values.std() / math.sqrt(len(x))).item()
        rows.append(row)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _SDEFrom(VE):
    """The SDE with the distribution at t = 1 given instead of N(0, σ_max² I)."""

    prior: Mixture = GAUSSIAN_PRIOR

    def prior_log_prob(self, x: Tensor) -> Tensor:
        return self.prior.log_prob(x, x.new_full((len(x),), self.sigma_max))


def nll(model: Score, prior: Mixture, x: Tensor, rtol: float = 1e-5, atol: float = 1e-5) -> Tensor:
    """−log p of a float64 ``model`` in nats at ``x`` (B, 2), by the probability flow ODE; (B,).

    The model's density is that of data with noise of scale sigma_min left in, so that the value to
    compare with is −`Mixture.log_prob` of the oracle at sigma_min.
    """
    sde = _SDEFrom(SDE.sigma_min, SDE.sigma_max, SDE.epsilon, prior)
    # The exact divergence draws no probes.
    unused = torch.Generator()
    return -log_likelihood(model, sde, x, unused, "exact", rtol=rtol, atol=atol).log_prob


def sample(
    model: Score, prior: Mixture, n: int, seed: int, rtol: float = 1e-5, atol: float = 1e-5
) -> Tensor:
    """``n`` samples of a float64 ``model`` by the probability flow ODE, then denoised; (n, 2).

    The starting points depend on ``prior`` and ``seed`` only.
    """

    def flow(t: Tensor, x: Tensor) -> Tensor:
        return SDE.probability_flow(model(x, t), x, t)

    sigma_max = torch.full((n,), SDE.sigma_max, dtype=torch.float64)
    x = prior.sample(sigma_max, generator(seed, "toy", "sample"))
    x = integrate(flow, x, 1.0, SDE.epsilon, rtol, atol).y
    with torch.no_grad():
        return SDE.denoise(model(x, x.new_full((n,), SDE.epsilon)), x)


@dataclass(frozen=True)
class VectorField:
    """A score at the points of a square grid: ``x`` and ``score`` (n, n, 2), ``curl`` (n, n).

    Index (i, j) is the i-th value of x_1 and the j-th of x_2; curl is ∂s_2/∂x_1 − ∂s_1/∂x_2.
    """

    x: Tensor
    score: Tensor
    curl: Tensor


def vector_field(model: Score, t: float, half_width: float = 8.0, n: int = 40) -> VectorField:
    """A float64 ``model`` at time ``t`` on n × n points of [−half_width, half_width]²."""
    axis = torch.linspace(-half_width, half_width, n, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis).requires_grad_()
    s = model(x, x.new_full((n * n,), t))
    j = jacobian(s, x)
    curl = j[:, 1, 0] - j[:, 0, 1]
    return VectorField(x.detach().view(n, n, 2), s.detach().view(n, n, 2), curl.detach().view(n, n))


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)
