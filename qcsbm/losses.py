r"""The training objective: denoising score matching plus λ L_QC.

With x_t = x_0 + σ_t z, weighted by σ_t² and averaged over t,

.. math:: L = E\left[\tfrac12 \|\sigma_t s(x_t, t) + z\|^2 + \lambda \sigma_t^2
    \tfrac12 \|J - J^T\|_F^2\right].

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Eqs. 2, 8 and 9; https://arxiv.org/abs/2209.12753
    A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011)
"""

from dataclasses import dataclass

from torch import Tensor

from qcsbm.conservativeness import qc_loss
from qcsbm.models import ScoreModel
from qcsbm.sde import bcast


@dataclass(frozen=True)
class Loss:
    """Both terms of every sample, (B,): DSM, and σ² L_QC before it is multiplied by λ."""

    dsm: Tensor
    qc: Tensor | None


def training_loss(
    model: ScoreModel,
    x_0: Tensor,
    t: Tensor,
    z: Tensor,
    probes: Tensor | None = None,
    estimator: str = "trace",
) -> Loss:
    """The loss at data x_0 (B, ...), times t (B,) and noise z like x_0.

    L_QC is evaluated, at the same noisy point, where ``probes`` (K, B, ...) are given.
    """
    mean, sigma = model.sde.marginal_prob(x_0, t)
    x_t = mean + bcast(sigma, x_0) * z
    if probes is not None:
        x_t.requires_grad_()
    s = model(x_t, t)
    dsm = (bcast(sigma, x_0) * s + z).flatten(1).square().sum(1) / 2
    qc = None if probes is None else sigma**2 * qc_loss(s, x_t, probes, estimator)
    return Loss(dsm, qc)
