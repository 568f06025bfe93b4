r"""What the output of a network stands for, and the score that follows from it.

With x = α x_0 + σ z at time t, x_0 a data point and z standard normal, and s = ∇ log p_t(x), every
kind but ``force`` is the mean given x of some sum of x_0 and z, and therefore (Tweedie)

.. math:: E[z \mid x] = -\sigma s, \qquad E[x_0 \mid x] = (x + \sigma^2 s) / \alpha

of x and the score:

=============  ==========================================  ===============  =======================
kind           output                                      a, of x          b, of s
=============  ==========================================  ===============  =======================
``score``      s                                           0                1
``epsilon``    E[z | x]                                    0                −σ
``x0``         E[x_0 | x]                                  1 / α            σ² / α
``denoiser``   the same, as D(x / α; σ / α)                1 / α            σ² / α
``v``          E[α z − σ x_0 | x]                          −σ / α           −σ (α² + σ²) / α
``velocity``   E[α′ x_0 + σ′ z | x], ′ the slope in time   α′ / α           σ (α′ σ − σ′ α) / α
=============  ==========================================  ===============  =======================

Their Jacobians are a I + b J with J the score's: the rotation J − Jᵀ is scaled by b alone, and
‖J‖ is not, so that Asym and NAsym depend on the kind. A ``force`` is an energy's negative gradient,
and no noise belongs to it.

References:
    Tweedie's Formula and Selection Bias (Efron, 2011)
    Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022),
    Section 4, for v; https://arxiv.org/abs/2202.00512
    Flow Matching for Generative Modeling (Lipman et al., 2023), for the velocity;
    https://arxiv.org/abs/2210.02747
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), Eq. 3,
    for D; https://arxiv.org/abs/2206.00364
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from qcsbm.runtime.errors import BadInput
from qcsbm.score.schedules import Discrete, Schedule
from qcsbm.score.sde import bcast

Kind = Literal["score", "epsilon", "x0", "v", "denoiser", "velocity", "force"]


def coefficients(kind: Kind, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """a (B,) and b (B,) at t (B,), with which the output of ``kind`` is a x + b s; float64.

    Raises:
        BadInput: the kind is ``force``, or ``velocity`` of a model with discrete steps, between
            which there is no slope; or there is no noise or nothing but noise at some t.
    """
    # In float32 the differences of `conversion` would lose three digits where α is 0.01.
    t = t.double()
    alpha, sigma = schedule.mean(t), schedule.std(t)
    if not bool(((alpha > 0) & (sigma > 0)).all()):
        raise BadInput(
            f"time: found {_some(t)}, expected times at which {schedule} leaves both data and noise"
        )
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    if kind == "score":
        return zero, one
    if kind == "epsilon":
        return zero, -sigma
    if kind in ("x0", "denoiser"):
        return 1 / alpha, sigma**2 / alpha
    if kind == "v":
        return -sigma / alpha, -sigma * (alpha**2 + sigma**2) / alpha
    if kind == "velocity" and not isinstance(schedule, Discrete):
        alpha_slope, sigma_slope = _slope(schedule.mean, t), _slope(schedule.std, t)
        return alpha_slope / alpha, sigma * (alpha_slope * sigma / alpha - sigma_slope)
    raise BadInput(
        f"kind: found {kind!r} under {schedule}, expected one that a score follows from there"
    )


def conversion(kind: Kind, target: Kind, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """a (B,) and b (B,), with which the output of ``target`` is a x + b (the output of ``kind``).

    Both are float64. The Jacobian of the target's output is a I + b times that of the other one.

    Raises:
        BadInput: see `coefficients`.
    """
    a, b = coefficients(kind, schedule, t)
    target_a, target_b = coefficients(target, schedule, t)
    return target_a - a * target_b / b, target_b / b


def to_score(kind: Kind, schedule: Schedule, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The score at x (B, ...) and t (B,), of which ``output`` (B, ...) is of ``kind``; like x.

    Raises:
        BadInput: see `coefficients`.
    """
    return _converted(kind, "score", schedule, output, x, t)


def denoised(kind: Kind, schedule: Schedule, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """E[x_0 | x] at x (B, ...) and t (B,), of which ``output`` (B, ...) is of ``kind``; like x.

    Raises:
        BadInput: see `coefficients`.
    """
    return _converted(kind, "x0", schedule, output, x, t)


def _converted(
    kind: Kind, target: Kind, schedule: Schedule, output: Tensor, x: Tensor, t: Tensor
) -> Tensor:
    a, b = conversion(kind, target, schedule, t)
    return bcast(a.to(x), x) * x + bcast(b.to(x), x) * output


def _slope(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """The derivative of a schedule's ``function`` at t (B,); shape (B,)."""
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        value = function(t)
        # α of some schedules is constant.
        if not value.requires_grad:
            return torch.zeros_like(t)
        return torch.autograd.grad(value.sum(), t)[0]


def _some(t: Tensor) -> str:
    return ", ".join(f"{number:.4g}" for number in t.detach().unique()[:5].tolist())
