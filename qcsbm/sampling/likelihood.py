r"""Log-likelihood of a score model by the probability flow ODE.

.. math:: \frac{dx}{dt} = f(x, t) - \tfrac12 g(t)^2 s(x, t), \qquad
   \log p(x_\epsilon) = \log \pi(x_1)
       + \int_\epsilon^1 \nabla \cdot \big( f(x_t, t) - \tfrac12 g(t)^2 s(x_t, t) \big) \, dt

with the prior π. The divergence of s is the trace of its Jacobian J: exactly by D backward passes,
or estimated by vᵀJv for one Rademacher probe v per sample, fixed along its trajectory, by one
backward pass. But for the solver's tolerance x_1 does not depend on v, so that log p is estimated
without bias.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    Eqs. 13 and 39, Appendix D.2; https://arxiv.org/abs/2011.13456
    FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models (Grathwohl et
    al., 2019); https://arxiv.org/abs/1810.01367
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qcsbm.conservativeness.asymmetry import Score
from qcsbm.conservativeness.products import jacobian, rademacher, vjp
from qcsbm.data.quantisation import bits_per_dim_offset, require_dequantised
from qcsbm.sampling.solver import integrate
from qcsbm.score.sde import SDE


@dataclass(frozen=True)
class LogDensity:
    """Log density in nats and the ODE's evaluations of each sample, both (B,)."""

    log_prob: Tensor
    nfe: Tensor


def hutchinson_divergence(s: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """vᵀJv of ``s`` at ``x`` with probes ``v``, all (B, ...), by one backward pass; shape (B,)."""
    return (vjp(s, x, v) * v).flatten(1).sum(1)


def exact_divergence(s: Tensor, x: Tensor) -> Tensor:
    """tr J of ``s`` at ``x`` (B, ...) by D backward passes; shape (B,)."""
    return jacobian(s, x).diagonal(dim1=1, dim2=2).sum(1)


def log_likelihood(
    score: Score,
    sde: SDE,
    x: Tensor,
    probes_generator: torch.Generator,
    divergence: str = "hutchinson",
    *,
    rtol: float,
    atol: float,
) -> LogDensity:
    """Log density of the model at ``x`` (B, ...), taken as samples at time epsilon.

    ``divergence`` is "hutchinson" or "exact"; the latter draws no probes. A sample and its log
    density are one state of D + 1 entries under one error norm. The solver works in ``x``'s dtype.

    Raises:
        ValueError: unknown ``divergence``.
        Diverged: see `qcsbm.sampling.solver.integrate`.
    """
    trace: Callable[..., Tensor]
    probes: tuple[Tensor, ...]
    if divergence == "exact":
        trace, probes = exact_divergence, ()
    elif divergence == "hutchinson":
        trace, probes = hutchinson_divergence, (rademacher(x.shape, probes_generator).to(x),)
    else:
        raise ValueError(f"divergence: found {divergence!r}, expected 'hutchinson' or 'exact'")

    d = x[0].numel()

    def flow(t: Tensor, y: Tensor, *v: Tensor) -> Tensor:
        with torch.enable_grad():
            x_t = y[:, :-1].unflatten(1, x.shape[1:]).requires_grad_()
            s = score(x_t, t)
            div_s = trace(s, x_t, *v)
        # The flow is an expression of scores and points, its divergence the same one of theirs.
        s = torch.cat([s.detach().flatten(1), div_s[:, None]], 1)
        points = torch.cat([y[:, :-1], torch.full_like(y[:, -1:], d)], 1)
        return sde.probability_flow(s, points, t)

    start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)
    end = integrate(flow, start, sde.epsilon, 1.0, rtol, atol, probes)
    return LogDensity(sde.prior_log_prob(end.y[:, :-1]) + end.y[:, -1], end.nfe)


def bits_per_dim(log_prob: Tensor, d: int, levels: int) -> Tensor:
    """Bits per dimension of the levels k, for the log density ``log_prob`` in nats of
    (k + u) / levels in ``d`` dimensions; shaped like ``log_prob``."""
    return -log_prob / (d * math.log(2)) + bits_per_dim_offset(levels)


def nll_bits_per_dim(
    score: Score,
    sde: SDE,
    x: Tensor,
    levels: int,
    probes_generator: torch.Generator,
    divergence: str = "hutchinson",
    *,
    rtol: float,
    atol: float,
) -> tuple[Tensor, Tensor]:
    """Bits per dimension and evaluations, both (B,), of dequantised data ``x`` (B, ...).

    Raises:
        ValueError: ``x`` is not dequantised data in [0, 1), see
            `qcsbm.data.quantisation.require_dequantised`, or unknown ``divergence``.
        Diverged: see `qcsbm.sampling.solver.integrate`.
    """
    require_dequantised(x, levels)
    likelihood = log_likelihood(score, sde, x, probes_generator, divergence, rtol=rtol, atol=atol)
    return bits_per_dim(likelihood.log_prob, x[0].numel(), levels), likelihood.nfe
