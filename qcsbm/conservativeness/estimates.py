r"""Asym, NAsym and what they are made of, by whichever products with the Jacobian a field allows.

J is the Jacobian of a field at a sample x and A = J − Jᵀ. From K Rademacher probes v_1 … v_K each
of the ``PRODUCTS`` makes unbiased estimates of ½‖A‖_F², ‖J‖_F² and tr J:

* ``autograd``: Jᵀv and Jv from one forward pass; ½‖Jv − Jᵀv‖² and ‖Jv‖² of every probe. Takes
  1 + 2K passes, and second derivatives of all that the field is made of.
* ``finite_differences``: Jᵀv by a backward pass, Jv by a central difference. Takes 1 + 3K passes.
* ``forward``: no derivative. With M_ij = v_iᵀJv_j by central differences, ½(M_ij − M_ji)² and M_ij²
  of every pair i ≠ j, since E[(vᵀBw)²] = ‖B‖_F² for independent v and w. Takes 2K + 4 passes.

In the first two, Asym of a sample has a relative variance of at most ρ/K, where ρ = 2/r ≤ 1 is that
of one probe (see `qcsbm.conservativeness.asymmetry`). In the last it is a U-statistic, and with
E[(vᵀu)⁴] ≤ 3‖u‖⁴ for Rademacher v

.. math:: \frac{Var}{(\tfrac12 \|A\|_F^2)^2} \le \frac{2}{K (K - 1)} (2 (K - 2) \rho + 2 + 3 \rho).

Where the rotation spreads over many planes, this falls as K⁻².

No product is exact: of an exact gradient, Asym is what their errors leave. `zero_within` tells.

References:
    A Class of Statistics with Asymptotically Normal Distribution (Hoeffding, 1948), Eq. 5.13
    A Stochastic Estimator of the Trace of the Influence Matrix (Hutchinson, 1989)
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qcsbm.conservativeness.asymmetry import half_squared_rotation
from qcsbm.conservativeness.products import (
    central_difference,
    jacobian,
    rademacher,
    vjp,
    vjp_jvp,
)
from qcsbm.runtime.errors import BadInput

Products = Literal["autograd", "finite_differences", "forward"]
PRODUCTS: tuple[Products, ...] = get_args(Products)

Function = Callable[[Tensor], Tensor]

# Probes that are taken a second time, for the floor.
CHECKS = 2


@dataclass(frozen=True)
class Estimates:
    """What K probes say of each of B samples: float64 on the CPU.

    ``rotation``, ``identity``, ``cross`` and ``norm`` (B, K) have, as means over probes, the
    estimates of ½‖A‖_F², D, tr J and ‖J‖_F²; the last three make ‖aI + bJ‖_F² for every a and b.
    Where they are means over ``pairs`` of probes, a probe has those of its own pairs. Exact values
    are those of one probe.

    ``trace`` (B,) is unbiased for tr J. ``floor`` (B,) is what rounding and truncation alone leave
    in ``asym``, from ``comparisons`` pairs of numbers per sample that are equal where products are
    exact. ``evaluations`` counts passes of the field per sample, forward and backward.
    """

    rotation: Tensor
    identity: Tensor
    cross: Tensor
    norm: Tensor
    trace: Tensor
    floor: Tensor
    pairs: bool
    comparisons: int
    evaluations: int

    @property
    def asym(self) -> Tensor:
        """Unbiased for ½‖A‖_F²; shape (B,)."""
        return self.rotation.mean(1)

    @property
    def squared_norm(self) -> Tensor:
        """Unbiased for ‖J‖_F²; shape (B,)."""
        return self.norm.mean(1)

    def nasym(self, a: float = 0.0, b: float = 1.0) -> Tensor:
        """‖bA‖_F² / (4‖aI + bJ‖_F²), NAsym of the field a x + b s where s is this one; shape (B,).

        A ratio of means is biased by O(1/K). The jackknife over probes takes that term out, at the
        price that a single value may leave [0, 1]. It is 0 where aI + bJ vanishes.

        References:
            Notes on Bias in Estimation (Quenouille, 1956)
        """
        numerator = b**2 * self.rotation
        denominator = 2 * (a**2 * self.identity + 2 * a * b * self.cross + b**2 * self.norm)
        total, total_denominator = numerator.sum(1), denominator.sum(1)
        ratio = _ratio(total, total_denominator)
        probes = numerator.shape[1]
        if probes == 1:
            return ratio
        # A pair leaves the sums of both of its probes.
        leaving = 2 if self.pairs else 1
        left_out = _ratio(
            total[:, None] - leaving * numerator, total_denominator[:, None] - leaving * denominator
        )
        return probes * ratio - (probes - 1) * left_out.mean(1)


def estimate(
    function: Function,
    x: Tensor,
    probes: int,
    products: Products,
    step: float,
    generator: torch.Generator,
) -> Estimates:
    """Estimates at every x (B, ...) from ``probes`` Rademacher probes of the CPU's ``generator``.

    ``function`` maps x to a field like x, and samples of a batch must not interact. ``step`` is
    that of `central_difference`, which "autograd" does without. Under "autograd" attention is
    computed by the only kernels of PyTorch's that can be differentiated twice.

    Raises:
        BadInput: fewer probes than the jackknife and the floor need: 2, or 3 under "forward".
    """
    least = 3 if products == "forward" else 2
    if probes < least:
        raise BadInput(f"probes: {probes} found, expected at least {least} under {products}")
    x = x.detach()
    v = [rademacher(x.shape, generator).to(x) for _ in range(probes)]
    if products == "forward":
        return _from_forward(function, x, v, step)
    jt_v, j_v = [], []
    with torch.enable_grad(), _attention(products):
        x = x.requires_grad_()
        s = function(x)
        for probe in v:
            if products == "autograd":
                backward, forward = vjp_jvp(s, x, probe)
            else:
                backward = vjp(s, x, probe)
                forward = central_difference(function, x.detach(), probe, step)
            jt_v.append(backward)
            j_v.append(forward)
    passes = {"autograd": 2, "finite_differences": 3}[products]
    return _from_products(_flat(v), _flat(jt_v), _flat(j_v), evaluations=1 + passes * probes)


def exact(function: Function, x: Tensor, products: Products, step: float) -> Estimates:
    """The same from the full Jacobian at every x (B, ...) of D entries.

    Takes D + 3 passes, or 2D + 4 under "forward".
    """
    x = x.detach()
    # The same ones at every call: they check the Jacobian, and no value depends on them.
    generator = torch.Generator().manual_seed(0)
    v = [rademacher(x.shape, generator).to(x) for _ in range(CHECKS)]
    d = x[0].numel()
    if products == "forward":
        # Unit vectors would move x √D times less than a probe, and rounding weigh D times as much.
        basis = _spread_out_basis(d)
        columns = [central_difference(function, x, e.to(x).view_as(x[0]), step) for e in basis]
        j = _flat(columns).mT @ basis / d
        direct = _flat([central_difference(function, x, probe, step) for probe in v])
        difference = direct - _flat(v) @ j.mT
        evaluations = 2 * (d + CHECKS)
    else:
        with torch.enable_grad(), _attention(products):
            x = x.requires_grad_()
            s = function(x)
            j = jacobian(s, x).cpu().double()
            direct = _flat([vjp(s, x, probe) for probe in v])
        difference = direct - _flat(v) @ j
        evaluations = 1 + d + CHECKS
    trace, norm = _diagonal(j).sum(1), j.square().sum((1, 2))
    return Estimates(
        rotation=half_squared_rotation(j)[:, None],
        identity=torch.full_like(norm, d)[:, None],
        cross=trace[:, None],
        norm=norm[:, None],
        trace=trace,
        # The product with a probe errs as much as the columns together.
        floor=difference.square().sum(2).mean(1) / 2,
        pairs=False,
        comparisons=CHECKS * d,
        evaluations=evaluations,
    )


def _from_products(v: Tensor, jt_v: Tensor, j_v: Tensor, evaluations: int) -> Estimates:
    """From probes, Jᵀv and Jv, each (B, K, D)."""
    probes = v.shape[1]
    forward, backward = v @ j_v.mT, v @ jt_v.mT
    cross = (_diagonal(forward) + _diagonal(backward)) / 2
    # vᵀ(Jw) = wᵀ(Jᵀv) whatever J is: what is left of it for independent v and w has the mean square
    # of the norm of (Jw − Jᵀw)'s error.
    defect = _others(forward - backward.mT).square()
    return Estimates(
        rotation=(j_v - jt_v).square().sum(2) / 2,
        identity=v.square().sum(2),
        cross=cross,
        norm=(j_v.square() + jt_v.square()).sum(2) / 2,
        trace=cross.mean(1),
        floor=defect.sum((1, 2)) / (2 * probes * (probes - 1)),
        pairs=False,
        comparisons=probes * (probes - 1),
        evaluations=evaluations,
    )


def _from_forward(function: Function, x: Tensor, v: list[Tensor], step: float) -> Estimates:
    """From central differences alone along the probes ``v``, each like x."""
    probes = len(v)
    j_v = _flat([central_difference(function, x, probe, step) for probe in v])
    # Truncation grows as the square of the step, so that at √2 times the step it doubles: the
    # difference of the two is the truncation at the one, and 1.5 times the variance of rounding.
    longer = math.sqrt(2) * step
    again = _flat([central_difference(function, x, probe, longer) for probe in v[:CHECKS]])
    flat = _flat(v)
    m, identity = flat @ j_v.mT, flat @ flat.mT
    defect = _others(flat @ (again - j_v[:, :CHECKS]).mT)

    def per_probe(values: Tensor) -> Tensor:
        values = _others(values)
        return (values.sum(1) + values.sum(2)) / (2 * (probes - 1))

    return Estimates(
        rotation=per_probe((m - m.mT).square() / 2),
        identity=per_probe(identity.square()),
        cross=per_probe(identity * m),
        norm=per_probe(m.square()),
        trace=_diagonal(m).mean(1),
        floor=defect.square().sum((1, 2)) / (CHECKS * (probes - 1)),
        pairs=True,
        comparisons=CHECKS * (probes - 1),
        evaluations=2 * (probes + CHECKS),
    )


def _spread_out_basis(d: int) -> Tensor:
    """Orthogonal rows (d, d) of squared norm d with no entry above √2: the Hartley transform."""
    grid = torch.arange(d, dtype=torch.float64)
    angle = 2 * math.pi * (torch.outer(grid, grid) % d) / d
    return angle.cos() + angle.sin()


def _attention(products: Products) -> AbstractContextManager[None]:
    """Fused attention has no second derivative."""
    return sdpa_kernel(SDPBackend.MATH) if products == "autograd" else nullcontext()


def _flat(vectors: list[Tensor]) -> Tensor:
    """Vectors (B, ...) of every probe as (B, K, D), float64 on the CPU."""
    return torch.stack([vector.detach().flatten(1).cpu().double() for vector in vectors], 1)


def _diagonal(m: Tensor) -> Tensor:
    return m.diagonal(dim1=1, dim2=2)


def _others(m: Tensor) -> Tensor:
    """``m`` (B, K, L) with zeros where a probe meets itself."""
    return m.masked_fill(torch.eye(*m.shape[1:], dtype=torch.bool), 0.0)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where ‖J‖² is 0 or, as a difference of sums, has been rounded below it."""
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1.0), 0.0)
