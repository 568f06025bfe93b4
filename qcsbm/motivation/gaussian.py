r"""Figure 1: what non-conservativeness costs a sampler at the same size of perturbation.

The target is :math:`p = N(0, \sigma^2 I)` in two dimensions, and its score is perturbed by a
rotational or by a radial field of the same norm,

.. math:: s(x) = -\frac{x}{\sigma^2} + c(x) (-x_2, x_1) \quad \text{(non-conservative)}, \qquad
   s(x) = -\frac{x}{\sigma^2} + c(x) \, x \quad \text{(conservative)},

.. math:: c(x) = \sqrt{\frac{2 \epsilon' \mu(x)}{p(x) (\|x\|^2 + \epsilon') + 10^{-8}}},
   \qquad \epsilon' = \epsilon + 10^{-6},

with μ an even mixture of 10 unit Gaussians on the circle of radius 3; ε = 0 means no perturbation.
Without the two small constants the explicit score-matching error ½E_p‖s − ∇log p‖² would be
∫ε μ = ε, as the paper states; with them it is about 0.003 ε, because p falls below 1e-8 far inside
the circle where the mass of μ lies. The radial field is conservative only up to the ten-fold
symmetry of μ: its Asym is tiny but not zero.

``qcsbm/paper/figure1.csv`` holds the table as the paper prints it. Its two columns are exchanged:
what is printed as Asym is the grid sum of NAsym, and the other way round.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Section 3.1 and Figure 1; https://arxiv.org/abs/2209.12753
"""

import math
from collections.abc import Iterable
from importlib.resources import files
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qcsbm.conservativeness.asymmetry import exact_asymmetry

FIELDS = ("conservative", "non-conservative")
EPSILONS = (0.0, 5e-4, 7.5e-4, 1e-3, 1.5e-3, 1.75e-3, 2.25e-3)
SIGMA = 0.1
MAX_STEPS = 300


def printed() -> pd.DataFrame:
    """The table as the paper prints it, with the names of its two columns exchanged."""
    return pd.read_csv(files("qcsbm") / "paper" / "figure1.csv")


def log_prob(x: Tensor) -> Tensor:
    """log p in nats at ``x`` (..., 2); shape (...)."""
    return -x.square().sum(-1) / (2 * SIGMA**2) - math.log(2 * math.pi * SIGMA**2)


def ring_density(x: Tensor) -> Tensor:
    """μ, the density of the ten Gaussians on the circle of radius 3, at ``x`` (..., 2)."""
    angle = torch.arange(10, dtype=x.dtype) * (2 * math.pi / 10)
    centres = 3 * torch.stack([angle.cos(), angle.sin()], -1)
    squared_distance = (x.unsqueeze(-2) - centres).square().sum(-1)
    return (-squared_distance / 2).exp().mean(-1) / (2 * math.pi)


def perturbation(x: Tensor, field: str, epsilon: float) -> Tensor:
    """The error s − ∇log p of the score ``field`` at ``x`` (..., 2), shaped like ``x``."""
    if field not in FIELDS:
        raise ValueError(f"field is {field!r}, expected one of {', '.join(FIELDS)}")
    if epsilon == 0:
        return torch.zeros_like(x)
    stabilised = epsilon + 1e-6
    damped = log_prob(x).exp() * (x.square().sum(-1) + stabilised) + 1e-8
    c = (2 * stabilised * ring_density(x) / damped).sqrt().unsqueeze(-1)
    return c * (x if field == "conservative" else torch.stack([-x[..., 1], x[..., 0]], -1))


def score(x: Tensor, field: str, epsilon: float) -> Tensor:
    """The perturbed score at ``x`` (..., 2), shaped like ``x``."""
    return -x / SIGMA**2 + perturbation(x, field, epsilon)


def square_grid(half_width: float, n: int) -> Tensor:
    """The n² points of an even grid on [−half_width, half_width]², shape (n², 2), float64."""
    axis = torch.linspace(-half_width, half_width, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


def weighted_sums(x: Tensor, weights: Tensor, field: str, epsilon: float) -> dict[str, float]:
    """Σ w(x) f(x) over ``x`` (N, 2), for the three f whose means are Asym, NAsym and the ESM loss.

    With weights (N,) that are p times the cell area these are the expectations under p.
    """
    asym, nasym = exact_asymmetry(lambda x, t: score(x, field, epsilon), x, torch.zeros(len(x)))
    esm = perturbation(x, field, epsilon).square().sum(1) / 2
    return {
        "asym": (weights * asym).sum().item(),
        "nasym": (weights * nasym).sum().item(),
        "esm": (weights * esm).sum().item(),
    }


def grid_sums(field: str, epsilon: float) -> dict[str, float]:
    """The paper's Asym and NAsym: sums of value × p over 20 × 20 points of [−3, 3]².

    No cell area enters, and the grid's spacing is three times σ, so these are not expectations.
    """
    x = square_grid(3.0, 20)
    return weighted_sums(x, log_prob(x).exp(), field, epsilon)


def expectations(
    field: str, epsilon: float, half_width: float = 12 * SIGMA, n: int = 481
) -> dict[str, float]:
    """Asym, NAsym and the ESM loss as true expectations under p, by the trapezoidal rule.

    The integrands are smooth and vanish, with all derivatives, at the edge of the square, where
    the rule converges faster than any power of the spacing; the defaults are exact to 1e-10
    relative. (Beyond about 6σ the constant 1e-8 rules, and the integrand of the ESM loss falls no
    faster than p times a growing μ / 1e-8: ±8σ alone would cost seven digits.)
    """
    x = square_grid(half_width, n)
    cell_area = (2 * half_width / (n - 1)) ** 2
    return weighted_sums(x, log_prob(x).exp() * cell_area, field, epsilon)


def starts(seed: int) -> Tensor:
    """Ten starting points from N(−2, 0.5²), by NumPy's legacy generator, shape (10, 2), float64."""
    return torch.from_numpy(np.random.RandomState(seed).normal(-2, 0.5, (10, 2)))


def paper_step_size(epsilon: float) -> float:
    """The paper's first step size h: 0.01 = σ² for the exact score, 0.0125 for a perturbed one."""
    return 0.0125 if epsilon else 0.01


def trajectories(x: Tensor, field: str, epsilon: float, h: float) -> Tensor:
    """Noise-free Langevin steps from ``x`` (..., 2); the points before each of them (300, ..., 2).

    Step i moves by h exp(−i / 1000) s(x). A step h multiplies the distance to the mode by
    ``|1 − h/σ² + hc|`` under the radial field and by ``|1 − h/σ² + ihc|`` under the rotational one.
    The rotation is tangential and costs nothing as h → 0; it lengthens the way only through the
    explicit step, which moves away from the mode where h > 2σ² / (1 + σ⁴c²). The paper's h = 1.25σ²
    does so where c > 0.77/σ².
    """
    path = []
    for i in range(MAX_STEPS):
        path.append(x)
        x = x + h * math.exp(-i / 1000) * score(x, field, epsilon)
    return torch.stack(path)


def steps_to_mode(path: Tensor) -> Tensor:
    """Steps until a set of trajectories (T, ..., n, 2) has arrived; shape (...), T if it has not.

    Arrived means that the average over the n trajectories of max(−log p, 0) is below 1e-3.
    """
    nll = -(log_prob(path).exp() + 1e-16).log()
    arrived = nll.clamp_min(0).mean(-1) < 1e-3
    first = arrived.int().argmax(0)
    return torch.where(arrived.any(0), first, len(path))


def table() -> pd.DataFrame:
    """Figure 1's table: one row per field and ε.

    Columns: field, epsilon; asym, nasym, esm (true expectations under p); asym_grid, nasym_grid
    (the paper's unnormalised grid sums, under their right names); steps (from the paper's starts).
    """
    rows = []
    for field, epsilon in product(FIELDS, EPSILONS):
        grid = grid_sums(field, epsilon)
        path = trajectories(starts(0), field, epsilon, paper_step_size(epsilon))
        rows.append(
            {
                "field": field,
                "epsilon": epsilon,
                **expectations(field, epsilon),
                "asym_grid": grid["asym"],
                "nasym_grid": grid["nasym"],
                "steps": steps_to_mode(path).item(),
            }
        )
    return pd.DataFrame(rows)


def random_starts(seeds: Iterable[int] = range(1, 101), size: float | None = None) -> pd.DataFrame:
    """The step counts from other sets of ten starts, one row per field, ε and seed.

    ``size`` is the first step size, the paper's if None. Columns: field, epsilon, h, seed, steps,
    arrived. Where ``arrived`` is false, ``steps`` is the limit of 300 and a lower bound only.
    """
    seeds = list(seeds)
    x = torch.stack([starts(seed) for seed in seeds])
    frames = []
    for field, epsilon in product(FIELDS, EPSILONS):
        h = size or paper_step_size(epsilon)
        steps = steps_to_mode(trajectories(x, field, epsilon, h)).numpy()
        columns = {"h": h, "seed": seeds, "steps": steps, "arrived": steps < MAX_STEPS}
        frames.append(pd.DataFrame({"field": field, "epsilon": epsilon, **columns}))
    return pd.concat(frames, ignore_index=True)


def spread(random: pd.DataFrame) -> pd.DataFrame:
    """Step counts of `random_starts` over seeds: field, epsilon, h, mean, sd, min, max, n, arrived.

    ``arrived`` counts the seeds that did so within 300 steps; the others enter as 300.
    """
    return random.groupby(["field", "epsilon", "h"], as_index=False).agg(
        mean=("steps", "mean"),
        sd=("steps", "std"),
        min=("steps", "min"),
        max=("steps", "max"),
        n=("steps", "size"),
        arrived=("arrived", "sum"),
    )
