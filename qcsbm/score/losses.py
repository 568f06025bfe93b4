r"""The training objective: denoising score matching plus λ L_QC.

With x_t = m_t x_0 + std_t z, weighted by std_t² and averaged over t,

.. math:: L = E\left[\tfrac12 \|\mathrm{std}_t s(x_t, t) + z\|^2 + \lambda \, \mathrm{std}_t^2
    \tfrac12 \|J - J^T\|_F^2\right].

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Eqs. 2, 8 and 9; https://arxiv.org/abs/2209.12753
    A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qcsbm.conservativeness.asymmetry import qc_loss
from qcsbm.conservativeness.regulariser import finite_difference_loss, repeatable
from qcsbm.score.models import ScoreModel
from qcsbm.score.sde import bcast


@dataclass(frozen=True)
class Loss:
    """Both terms by sample: DSM (B,), and std² L_QC (b,) before it is multiplied by λ."""

    dsm: Tensor
    qc: Tensor | None


def training_loss(
    model: ScoreModel,
    x_0: Tensor,
    t: Tensor,
    z: Tensor,
    probes: Tensor | None = None,
    estimator: str = "trace",
    difference_step: float | None = None,
) -> Loss:
    """The loss at data x_0 (B, ...), times t (B,) and noise z like x_0.

    L_QC is evaluated at the noisy points of the first b ≤ B samples where ``probes`` (K, b, ...)
    are given. As the samples of a batch are independent, the mean over fewer of them is still
    unbiased; only they pay for second derivatives. Differences over ``difference_step`` times std_t
    take the place of these where it is given, with the same dropout in all passes.
    """
    mean, std = model.sde.marginal_prob(x_0, t)
    x_t = mean + bcast(std, x_0) * z
    b = 0 if probes is None else probes.shape[1]
    scores, qc = [], None
    if probes is not None:
        x_qc = x_t[:b].requires_grad_()
        if difference_step is None:
            scores.append(model(x_qc, t[:b]))
            qc = qc_loss(scores[0], x_qc, probes, estimator)
        else:
            score = repeatable(lambda x: model(x, t[:b]), x_t.device)
            scores.append(score(x_qc))
            step = difference_step * std[:b]
            qc = finite_difference_loss(score, scores[0], x_qc, probes, step, estimator)
        qc = std[:b] ** 2 * qc
    if b < len(x_t):
        scores.append(model(x_t[b:], t[b:]))
    dsm = (bcast(std, x_0) * torch.cat(scores) + z).flatten(1).square().sum(1) / 2
    return Loss(dsm, qc)
