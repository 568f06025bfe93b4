"""Data whose score is known at every noise level, under the VE SDE that was published."""

import torch

from qcsbm.score.sde import VE, bcast

SDE = VE()
WEIGHTS = torch.tensor([0.3, 0.7])
MEANS = torch.tensor([[0.2, 0.3], [0.8, 0.6]])
SPREAD = 0.05
# Of the Gaussian data.
MEAN, VARIANCE = 0.5, 0.04


def mixture_score(x, t, sde=SDE):
    """Score at x (B, 2) of the mixture of two isotropic Gaussians noised to t (B,)."""
    variance = SPREAD**2 + sde.sigma(t)[:, None] ** 2
    to_means = MEANS - x[:, None]
    posterior = torch.softmax(WEIGHTS.log() - to_means.square().sum(2) / (2 * variance), 1)
    return (posterior[:, :, None] * to_means).sum(1) / variance


def gaussian_score(x, t, sde=SDE):
    """Score at x (B, ...) of N(0.5, 0.04 I) noised to t (B,)."""
    return -(x - MEAN) / bcast(VARIANCE + sde.sigma(t) ** 2, x)
