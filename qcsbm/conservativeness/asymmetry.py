r"""How far a vector field is from a gradient: Asym, NAsym and the estimators of L_QC.

With J the Jacobian of the score at x and A = J − Jᵀ,

.. math:: \mathrm{Asym} = E_x[\tfrac12 \|A\|_F^2] = E_x[tr(JJ^T) - tr(JJ)], \qquad
   \mathrm{NAsym} = E_x\left[\frac{\|A\|_F^2}{4 \|J\|_F^2}\right] \in [0, 1].

Both are zero if and only if the field is conservative on the support of x. For a probe v with
E[vvᵀ] = I the products a = Jᵀv and b = Jv give two unbiased estimates of ½‖A‖²:

* ``trace`` (Eq. 9 of the paper): vᵀJJᵀv − vᵀJJv = aᵀ(a − b);
* ``antisymmetric``: ½‖(J − Jᵀ)v‖² = ½‖b − a‖².

With S = (J + Jᵀ)/2 the first equals the second minus vᵀSAv, a term of mean zero whose variance
is large wherever S is far from a multiple of the identity, however small A is. The second is a
quadratic form: over Rademacher (or, as an equality, Gaussian) probes

.. math:: \frac{Var(\tfrac12 \|Av\|^2)}{(\tfrac12 \|A\|_F^2)^2} \le \frac{2}{r} \le 1, \qquad
   r = \frac{(tr \, A^TA)^2}{\|A^TA\|_F^2} \ge 2,

since the singular values of an antisymmetric matrix come in equal pairs. Whatever D and J are, one
probe errs by no more than its mean, and by little where the rotation spreads over many planes.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Eqs. 6, 7 and 9; https://arxiv.org/abs/2209.12753
    A Stochastic Estimator of the Trace of the Influence Matrix (Hutchinson, 1989)
    Randomized Algorithms for Estimating the Trace of an Implicit Symmetric Positive Semi-Definite
    Matrix (Avron & Toledo, 2011), Section 5, for the variance of a quadratic form
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qcsbm.conservativeness.products import (
    forward_difference,
    jacobian,
    rademacher,
    vjp,
    vjp_jvp,
)

Score = Callable[[Tensor, Tensor], Tensor]


def half_squared_rotation(j: Tensor) -> Tensor:
    """½‖J − Jᵀ‖_F² of Jacobians (B, D, D); shape (B,)."""
    return (j - j.mT).square().sum((1, 2)) / 2


def trace_estimate(jt_v: Tensor, j_v: Tensor) -> Tensor:
    """The estimate of ½‖J − Jᵀ‖_F² in Eq. 9 from Jᵀv and Jv (B, ...); shape (B,), any sign."""
    return (jt_v * (jt_v - j_v)).flatten(1).sum(1)


def antisymmetric_estimate(jt_v: Tensor, j_v: Tensor) -> Tensor:
    """½‖(J − Jᵀ)v‖² from Jᵀv and Jv (B, ...); shape (B,), never negative."""
    return (j_v - jt_v).flatten(1).square().sum(1) / 2


ESTIMATORS = {"trace": trace_estimate, "antisymmetric": antisymmetric_estimate}


def qc_loss(s: Tensor, x: Tensor, probes: Tensor, estimator: str) -> Tensor:
    """L_QC of each sample, averaged over probes, with its full gradient in the parameters.

    ``s`` is the score at ``x`` (B, ...), with a graph from both x and the parameters; ``probes``
    is (K, B, ...). Shape (B,). Both gradient components of Eq. 9, through the first and through
    the second product, are kept.

    With u = Av the gradient of ½‖Av‖² is that of uᵀJv − vᵀJu at constant u. It needs six passes
    (x, v and u through the network, the cotangents u, v and that of x back) and three products with
    every weight's gradient, the DSM loss included, where DSM alone needs two and one.
    """
    estimate = ESTIMATORS[estimator]
    return torch.stack([estimate(*vjp_jvp(s, x, v, create_graph=True)) for v in probes]).mean(0)


def exact_asymmetry(score: Score, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """½‖A‖_F² and ‖A‖_F² / (4‖J‖_F²) at every x (B, ...) and t (B,); two tensors (B,).

    Costs D backward passes. NAsym is 0 where J vanishes: a constant field is conservative.
    """
    # On one core of a CPU, passes of a small U-Net over fewer samples take hardly less time.
    copies = max(1, 128 // len(x))
    with torch.enable_grad():
        x = x.detach().repeat(copies, *(1,) * (x.dim() - 1)).requires_grad_()
        j = jacobian(score(x, t.repeat(copies)), x, copies=copies)
    asym = half_squared_rotation(j)
    return asym, ratio(asym, 2 * j.square().sum((1, 2)))


def estimate_asymmetry(
    score: Score,
    x: Tensor,
    t: Tensor,
    probes: int,
    generator: torch.Generator,
    step: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Estimates of the two quantities of `exact_asymmetry` from ``probes`` Rademacher probes.

    The numerator is the antisymmetric estimate, the denominator averages ‖Jv‖² and ‖Jᵀv‖². The
    ratio of their means is biased by O(1 / probes); the jackknife over probes takes that term out,
    at the price that a single value may leave [0, 1]. One probe alone leaves it in.

    Where ``step`` is given, Jv is a difference over it, in units of x: a pass of the score takes
    the place of a second derivative, and all probes share its value at x. That biases both by
    O(step²), and of a gradient leaves what differences err by. 0.003 times the noise level is a
    good step in float32.

    References:
        Notes on Bias in Estimation (Quenouille, 1956)
    """
    numerators, denominators = [], []
    # Differences would see what another kernel of attention rounds otherwise.
    kernels = nullcontext() if step is None else sdpa_kernel(SDPBackend.MATH)
    with kernels, torch.enable_grad():
        x = x.detach().requires_grad_()
        s = score(x, t)
        for _ in range(probes):
            v = rademacher(x.shape, generator).to(x)
            if step is None:
                jt_v, j_v = vjp_jvp(s, x, v)
            else:
                jt_v = vjp(s, x, v)
                j_v = forward_difference(lambda y: score(y, t), s, x, v, step)
            numerators.append(antisymmetric_estimate(jt_v, j_v))
            denominators.append((jt_v.square() + j_v.square()).flatten(1).sum(1))
    numerator, denominator = torch.stack(numerators), torch.stack(denominators)
    total, total_denominator = numerator.sum(0), denominator.sum(0)
    left_out = ratio(total - numerator, total_denominator - denominator)
    nasym = probes * ratio(total, total_denominator) - (probes - 1) * left_out.mean(0)
    return numerator.mean(0), nasym


def one_probe_asymmetry(
    score: Score, x: Tensor, t: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What the paper's evaluation records at every x (B, ...): one probe, Eq. 9, ratio per probe.

    The mean of the second tensor is a biased estimate of NAsym, since the mean of a ratio is not
    the ratio of means. Kept for comparison with published numbers only. As vᵀJJv = vᵀJᵀ(Jᵀv), two
    backward passes do.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        s = score(x, t)
        v = rademacher(x.shape, generator).to(x)
        jt_v = vjp(s, x, v)
        asym = (jt_v.square() - v * vjp(s, x, jt_v)).flatten(1).sum(1)
    return asym, ratio(asym, 2 * jt_v.flatten(1).square().sum(1))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where ‖J‖² is 0 or, as a difference of sums, has been rounded below it."""
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1.0), 0.0)
