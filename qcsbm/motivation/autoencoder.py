r"""Figure 4: a one-layer autoencoder that becomes conservative without tied weights.

.. math:: s(x) = R \, h(W^T x + b) + c, \qquad J = \sum_i h'_i \, r_i w_i^T,

with the columns r_i, w_i of R and W, and the swish h_i(z) = z / (1 + exp(−β_i z)), β_i learned.
Only L_QC = ½‖J − Jᵀ‖_F², averaged over a grid, is minimised. Let κ_i be the entry (1, 2) of
r_i w_iᵀ − w_i r_iᵀ, which is zero if and only if r_i is parallel to w_i. With D = H = 2

.. math:: J_{12} - J_{21} = \tfrac12 (h'_1 + h'_2) (\kappa_1 + \kappa_2)
   + \tfrac12 (h'_1 - h'_2) (\kappa_1 - \kappa_2), \qquad
   \|RW^T - WR^T\|_F = \sqrt2 |\kappa_1 + \kappa_2|.

So a symmetric RWᵀ is necessary, but not sufficient (see `counterexample`): besides, either each r_i
is parallel to its w_i, or the two units have merged, with equal slopes at every x. Tied weights,
R = W, are sufficient but not necessary.

Many seeds are trained at once: their weights are the rows of one matrix, and Adam works entry by
entry, so that no seed sees another.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Section 6 and Figure 4; https://arxiv.org/abs/2209.12753
    Conservativeness of Untied Auto-Encoders (Im et al., 2016); https://arxiv.org/abs/1506.07643
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qcsbm.runtime.seeding import generator

D = 2
H = 2
LEARNING_RATE = 1e-4
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Weights:
    """S autoencoders: ``r`` and ``w`` (S, D, H), ``b`` and ``beta`` (S, H), ``c`` (S, D)."""

    r: Tensor
    w: Tensor
    b: Tensor
    c: Tensor
    beta: Tensor


@dataclass(frozen=True)
class Trend:
    """Training of S autoencoders: what held after ``steps`` (T,) of its steps.

    ``l_qc``; ``asymmetry`` ‖WRᵀ − RWᵀ‖_F; ``untying`` ‖W − R‖_F: (T, S). ``angle`` (T, S, H): the
    angle in degrees between r_i and w_i as lines, in [0, 90]. ``slope_gap`` (T, S): the root mean
    square of h'_1 − h'_2, zero where the units have merged. ``weights``: those after the last step.
    """

    steps: Tensor
    l_qc: Tensor
    asymmetry: Tensor
    untying: Tensor
    angle: Tensor
    slope_gap: Tensor
    weights: Weights


def grid() -> Tensor:
    """The 40 × 40 points of an even grid on [−10, 10]², shape (1600, 2), float64."""
    axis = torch.linspace(-10, 10, 40, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


def unpack(theta: Tensor) -> Weights:
    """The weights in the rows of ``theta`` (S, 2DH + 2H + D)."""
    r, w, b, c, beta = theta.split([D * H, D * H, H, D, H], 1)
    return Weights(r.unflatten(1, (D, H)), w.unflatten(1, (D, H)), b, c, beta)


def initial(seeds: Sequence[int], tied: bool = False) -> Tensor:
    """One row of weights per seed: β = 1 and all others from U(−1, 1), float64; R = W if tied."""
    theta = torch.ones(len(seeds), 2 * D * H + 2 * H + D, dtype=torch.float64)
    for row, seed in zip(theta, seeds, strict=True):
        row[:-H].uniform_(-1, 1, generator=generator(seed, "autoencoder"))
    if tied:
        theta[:, : D * H] = theta[:, D * H : 2 * D * H]
    return theta


def score(weights: Weights, x: Tensor) -> Tensor:
    """s at the points ``x`` (N, D), shape (S, N, D)."""
    z = _preactivation(weights, x)
    h = z * (weights.beta[:, None] * z).sigmoid()
    return h @ weights.r.mT + weights.c[:, None]


def slopes(weights: Weights, x: Tensor) -> Tensor:
    """The h'_i at the points ``x`` (N, D), shape (S, N, H)."""
    beta_z = weights.beta[:, None] * _preactivation(weights, x)
    gate = beta_z.sigmoid()
    return gate * (1 + beta_z * (1 - gate))


def jacobian(weights: Weights, x: Tensor) -> Tensor:
    """J at the points ``x`` (N, D), shape (S, N, D, D)."""
    return torch.einsum("snh,sdh,seh->snde", slopes(weights, x), weights.r, weights.w)


def l_qc(weights: Weights, x: Tensor) -> Tensor:
    """½‖J − Jᵀ‖_F², averaged over the points ``x`` (N, D); shape (S,).

    The antisymmetric part is formed unit by unit, so that it is exactly zero for tied weights.
    """
    outer = torch.einsum("sdh,seh->shde", weights.r, weights.w)
    rotation = slopes(weights, x) @ (outer - outer.mT).flatten(2)
    return rotation.square().sum(2).mean(1) / 2


def asymmetry(weights: Weights) -> Tensor:
    """‖WRᵀ − RWᵀ‖_F, shape (S,)."""
    product = weights.w @ weights.r.mT
    return torch.linalg.matrix_norm(product - product.mT)


def untying(weights: Weights) -> Tensor:
    """‖W − R‖_F, shape (S,)."""
    return torch.linalg.matrix_norm(weights.w - weights.r)


def angle(weights: Weights) -> Tensor:
    """The angle in degrees, in [0, 90], between the lines along r_i and w_i; shape (S, H)."""
    r, w = weights.r, weights.w
    cross = r[:, 0] * w[:, 1] - r[:, 1] * w[:, 0]
    return torch.atan2(cross.abs(), (r * w).sum(1).abs()).rad2deg()


def slope_gap(weights: Weights, x: Tensor) -> Tensor:
    """The root mean square of h'_1 − h'_2 over the points ``x`` (N, D); shape (S,)."""
    first, second = slopes(weights, x).unbind(2)
    return (first - second).square().mean(1).sqrt()


def clip(gradient: Tensor) -> Tensor:
    """``gradient`` with every row shortened to the norm 1 where it is longer."""
    norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    return gradient / (norm / MAX_GRADIENT_NORM).clamp_min(1)


def train(seeds: Sequence[int], tied: bool = False, steps: int = 10_000, every: int = 50) -> Trend:
    """Minimise L_QC from the initial weights of every seed by Adam, recording ``every`` steps.

    Tied weights stay tied, since L_QC and its gradient are zero there.
    """
    x = grid()
    theta = initial(seeds, tied).requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=LEARNING_RATE)
    records = []
    for step in range(steps + 1):
        loss = l_qc(unpack(theta), x)
        if step % every == 0:
            weights = unpack(theta.detach().clone())
            measured = (f(weights) for f in (asymmetry, untying, angle))
            records.append((loss.detach(), *measured, slope_gap(weights, x)))
        if step < steps:
            theta.grad = clip(torch.autograd.grad(loss.sum(), theta)[0])
            optimiser.step()
    losses, asymmetries, untyings, angles, gaps = map(torch.stack, zip(*records, strict=True))
    return Trend(
        steps=torch.arange(0, steps + 1, every),
        l_qc=losses,
        asymmetry=asymmetries,
        untying=untyings,
        angle=angles,
        slope_gap=gaps,
        weights=unpack(theta.detach()),
    )


def outcomes(seeds: Sequence[int], trend: Trend) -> pd.DataFrame:
    """Where the training ended: one row per seed of ``trend``.

    Columns: seed, l_qc_start, l_qc, asymmetry, untying, angle (the largest over units, degrees),
    slope_gap, and ``route``: how J became symmetric. "parallel": all angles below 1°; "merged": a
    slope gap below 1e-3; "none": L_QC above a millionth of its start, or neither of the two.
    """
    start, end = trend.l_qc[0].numpy(), trend.l_qc[-1].numpy()
    largest_angle = trend.angle[-1].max(1).values.numpy()
    gap = trend.slope_gap[-1].numpy()
    conservative = end <= 1e-6 * start
    return pd.DataFrame(
        {
            "seed": list(seeds),
            "l_qc_start": start,
            "l_qc": end,
            "asymmetry": trend.asymmetry[-1].numpy(),
            "untying": trend.untying[-1].numpy(),
            "angle": largest_angle,
            "slope_gap": gap,
            "route": np.select(
                [conservative & (largest_angle < 1), conservative & (gap < 1e-3)],
                ["parallel", "merged"],
                "none",
            ),
        }
    )


def counterexample() -> Weights:
    """W = I and R = [[1, 2], [2, −1]]: RWᵀ is symmetric, J = R diag(h') only where h'_1 = h'_2."""
    return Weights(
        r=torch.tensor([[[1.0, 2.0], [2.0, -1.0]]], dtype=torch.float64),
        w=torch.eye(2, dtype=torch.float64)[None],
        b=torch.zeros(1, H, dtype=torch.float64),
        c=torch.zeros(1, D, dtype=torch.float64),
        beta=torch.ones(1, H, dtype=torch.float64),
    )


def _preactivation(weights: Weights, x: Tensor) -> Tensor:
    return x @ weights.w + weights.b[:, None]
