r"""Asym, NAsym and what they are made of, by whichever products with the Jacobian a field allows.

J is the Jacobian of a field at a sample x and A = J − Jᵀ. From K Rademacher probes v_1 … v_K each
of the ``PRODUCTS`` makes unbiased estimates of ½‖A‖_F², ‖J‖_F² and tr J:

* ``autograd``: Jᵀv and Jv from one forward pass; ½‖Jv − Jᵀv‖² and ‖Jv‖² of every probe. Takes
  1 + 2K passes, and second derivatives of all that the field is made of.
* ``finite_differences``: Jᵀv by a backward pass, Jv by a central difference. Takes 3 + 3K passes.
* ``forward``: no derivative. Jv by central differences, and with M_ij = v_iᵀJv_j the estimate
  ½(M_ij − M_ji)² of every pair, since E[(vᵀAw)²] = ‖A‖_F² for independent v and w. 2K + 4 passes.

In the first two, Asym of a sample has a relative variance of at most ρ/K, where ρ = 2/r ≤ 1 is that
of one probe (see `qcsbm.conservativeness.asymmetry`). In the last it is a U-statistic, and with
E[(vᵀu)⁴] ≤ 3‖u‖⁴ for Rademacher v

.. math:: \frac{Var}{(\tfrac12 \|A\|_F^2)^2} \le \frac{2}{K (K - 1)} (2 (K - 2) \rho + 2 + 3 \rho).

Where the rotation spreads over many planes, this falls as K⁻².

Products are linear in the field: those of several fields with the same probes make the estimates of
all sums of their multiples, see `Combinations`.

No product is exact: of an exact gradient, Asym is what their errors leave. `zero_within` tells.

References:
    A Class of Statistics with Asymptotically Normal Distribution (Hoeffding, 1948), Eq. 5.13
    A Stochastic Estimator of the Trace of the Influence Matrix (Hutchinson, 1989)
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from scipy.special import chdtri
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qcsbm.conservativeness.asymmetry import half_squared_rotation, ratio
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

# Products that are computed a second time, for the floor.
CHECKS = 2
# Units in the last place that all products may err by, relative to ‖J‖_F.
COMMON = 30
# Where the mean of Asym is below this many floors, it may be nothing but errors.
FACTOR = 2
# How sure it is that the mean floor is below what is taken for it.
CONFIDENCE = 0.99


@dataclass(frozen=True)
class Estimates:
    """What K probes say of each of B samples: float64 on the CPU.

    ``rotation``, ``identity``, ``cross`` and ``norm`` (B, K) are each probe's estimates of ½‖A‖_F²,
    D, tr J and ‖J‖_F²; the last three make ‖aI + bJ‖_F² for every a and b. Where ``pairs`` of
    probes estimate ½‖A‖_F², a probe has the mean over its own. Exact values are those of one probe.

    ``defect`` (B,) is what the errors of products add to ½‖A‖_F², as far as products that ought to
    agree show it, by ``comparisons`` numbers per sample. ``rounding`` (B,) is what they may err by
    unseen, relative to ‖J‖_F. ``evaluations`` counts passes of the field per sample, forward and
    backward.
    """

    rotation: Tensor
    identity: Tensor
    cross: Tensor
    norm: Tensor
    defect: Tensor
    pairs: bool
    comparisons: int
    rounding: Tensor
    evaluations: int

    @property
    def asym(self) -> Tensor:
        """Unbiased for ½‖A‖_F²; shape (B,)."""
        return self.rotation.mean(1)

    @property
    def squared_norm(self) -> Tensor:
        """Unbiased for ‖J‖_F²; shape (B,)."""
        return self.norm.mean(1)

    @property
    def trace(self) -> Tensor:
        """Unbiased for tr J; shape (B,)."""
        return self.cross.mean(1)

    @property
    def floor(self) -> Tensor:
        """What rounding and truncation alone leave in ``asym``; shape (B,)."""
        return self.defect.maximum(self.rounding**2 / 2 * self.squared_norm)

    def squared_norm_of(self, a: float, b: float) -> Tensor:
        """Unbiased for ‖aI + bJ‖_F²; shape (B,)."""
        return self._norm_of(a, b).mean(1)

    def nasym(self, a: float = 0.0, b: float = 1.0) -> Tensor:
        """‖bA‖_F² / (4‖aI + bJ‖_F²), NAsym of the field a x + b s where s is this one; shape (B,).

        A ratio of means is biased by O(1/K). The jackknife over probes takes that term out, at the
        price that a single value may leave [0, 1]. It is 0 where aI + bJ vanishes.

        References:
            Notes on Bias in Estimation (Quenouille, 1956)
        """
        numerator, denominator = b**2 * self.rotation, 2 * self._norm_of(a, b)
        plain = ratio(numerator.mean(1), denominator.mean(1))
        probes = numerator.shape[1]
        if probes == 1:
            return plain
        # Without a probe its pairs are gone, from the means of the other probes as well.
        gone = 2 if self.pairs else 1
        left_out = ratio(_without_each(numerator, gone), _without_each(denominator, 1))
        return probes * plain - (probes - 1) * left_out.mean(1)

    def _norm_of(self, a: float, b: float) -> Tensor:
        return a**2 * self.identity + 2 * a * b * self.cross + b**2 * self.norm


@dataclass(frozen=True)
class Combinations:
    """Estimates of w₁ f₁ + … + w_F f_F for any weights w, of F fields that were multiplied once.

    ``measured`` (F, B, ...) are products and their errors, all linear in the field, and
    ``estimates`` makes the rest of the sums of their multiples.
    """

    measured: tuple[Tensor, ...]
    estimates: Callable[..., Estimates]

    def at(self, *weights: float) -> Estimates:
        """The estimates of the combination with ``weights`` (F,).

        Their ``evaluations`` are those of all fields, whatever the weights. Products of the fields
        are rounded in proportion to the fields' own norms, of which a combination may have less.
        """
        terms = [[w * m for w, m in zip(weights, part, strict=True)] for part in self.measured]
        combined = self.estimates(*(sum(rest, first) for first, *rest in terms))
        if len(weights) == 1:
            return combined
        size = sum(abs(w) * norm for w, norm in zip(weights, self._norms, strict=True))
        growth = size / combined.squared_norm.sqrt()
        rounding = torch.where(growth.isfinite(), growth, 1.0) * combined.rounding
        return replace(combined, rounding=rounding.maximum(combined.rounding))

    @cached_property
    def _norms(self) -> list[Tensor]:
        """‖J‖_F of every field; each (B,)."""
        fields = zip(*self.measured, strict=True)
        return [self.estimates(*products).squared_norm.sqrt() for products in fields]


def zero_within(asym: Tensor, floor: Tensor, comparisons: int) -> float | None:
    """The X of "zero within X" where Asym of a level is no more than errors leave, None elsewhere.

    ``asym``, ``floor`` (n,) and ``comparisons`` are those of `Estimates` at n samples. Means over
    samples are compared: Asym is zero up to FACTOR times an upper confidence bound of the floor,
    and X is that, where all samples count alike. For the comparison those with large floors count
    less, as a single bad one would hide what the others show.

    Errors are taken to be normal. The floor then has as many degrees of freedom as there are
    comparisons, in (Σ f)² / Σ f² samples where the floors f differ between samples.

    References:
        An Approximate Distribution of Estimates of Variance Components (Satterthwaite, 1946)
    """
    if not floor.any():
        return None if asym.any() else 0.0
    weight = 1 / (floor + floor.mean())
    if float((weight * asym).sum()) > _most_errors_leave(weight * floor, comparisons) * len(asym):
        return None
    return max(_most_errors_leave(floor, comparisons), float(asym.mean()))


def _most_errors_leave(floor: Tensor, comparisons: int) -> float:
    freedom = comparisons * float(floor.sum() ** 2 / floor.square().sum())
    return FACTOR * float(floor.mean()) * freedom / float(chdtri(freedom, CONFIDENCE))


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
        BadInput: fewer probes than the jackknife and the floor need, which is 2, or 3 under
            "forward"; or a ``step`` that is lost in the rounding of x.
    """
    return estimate_combinations([function], x, probes, products, step, generator).at(1.0)


def estimate_combinations(
    functions: Sequence[Function],
    x: Tensor,
    probes: int,
    products: Products,
    step: float,
    generator: torch.Generator,
) -> Combinations:
    """`estimate` of every combination of ``functions``, all with the same probes.

    Raises:
        BadInput: as in `estimate`.
    """
    least = 3 if products == "forward" else 2
    if probes < least:
        raise BadInput(f"probes: found {probes}, expected at least {least} under {products}")
    x = x.detach()
    v = [rademacher(x.shape, generator).to(x) for _ in range(probes)]
    if products == "autograd":
        return _from_autograd(functions, x, v)
    if products == "finite_differences":
        return _from_finite_differences(functions, x, v, step)
    return _from_evaluations(functions, x, v, step)


def exact(function: Function, x: Tensor, products: Products, step: float) -> Estimates:
    """The same from the full Jacobian at every x (B, ...) of D entries.

    Takes D + 3 passes, or 2D + 4 under "forward".

    Raises:
        BadInput: a ``step`` that is lost in the rounding of x, under "forward".
    """
    return exact_combinations([function], x, products, step).at(1.0)


def exact_combinations(
    functions: Sequence[Function], x: Tensor, products: Products, step: float
) -> Combinations:
    """`exact` of every combination of ``functions``.

    Raises:
        BadInput: as in `exact`.
    """
    x = x.detach()
    d = x[0].numel()
    if products == "forward":
        # Unit vectors would move x √D times less than a probe, and rounding weigh D times as much.
        basis = _spread_out_basis(d)
        vectors = [row.to(x).view_as(x[0]).expand_as(x) for row in basis]
        columns = _differences(functions, x, vectors, step)
        j = columns.mT @ basis / d
        rotated = basis @ columns.mT
        rotation = (rotated - rotated.mT).square().sum(3).sum(0)
        worst = rotation.topk(min(CHECKS, d), 1).indices.T
        error = _errors(functions, x, basis.expand_as(columns[0]), columns, worst, step)
        passes = 2 * (d + len(worst))
    else:
        # The same ones at every call: they check the Jacobian, and no value depends on them.
        generator = torch.Generator().manual_seed(0)
        probes = [rademacher(x.shape, generator).to(x) for _ in range(CHECKS)]
        rows, products_with_probes = [], []
        with torch.enable_grad(), _attention(products):
            x = x.requires_grad_()
            for function in functions:
                s = function(x)
                rows.append(jacobian(s, x).cpu().double())
                products_with_probes.append(_flat([vjp(s, x, probe) for probe in probes]))
        j = torch.stack(rows)
        # The product with a probe errs as much as the rows together.
        error = (torch.stack(products_with_probes) - _flat(probes) @ j) / math.sqrt(2)
        passes = 1 + d + CHECKS
    rounding = _rounding(x, step if products == "forward" else None)

    def estimates(j: Tensor, error: Tensor) -> Estimates:
        norm = j.square().sum((1, 2))
        return Estimates(
            rotation=half_squared_rotation(j)[:, None],
            identity=torch.full_like(norm, d)[:, None],
            cross=j.diagonal(dim1=1, dim2=2).sum(1)[:, None],
            norm=norm[:, None],
            defect=error.square().sum(2).mean(1),
            pairs=False,
            comparisons=CHECKS * d,
            rounding=rounding,
            evaluations=len(functions) * passes,
        )

    return Combinations((j, error), estimates)


def probes_for(relative_error: float, samples: int, products: Products, rho: float = 1.0) -> int:
    """Probes that leave no more than ``relative_error`` in the mean Asym of ``samples``.

    This is the standard deviation over probes, by the module's docstring; ``rho`` is ρ there, 1 in
    the worst case of all rotation in one plane. Samples are taken to be equally asymmetric; what
    they differ by adds to the error, and more probes do not help there.
    """
    variance = samples * relative_error**2
    if products == "forward":
        # The root of (4 ρ K + 4 − 2 ρ) / (K (K − 1)) = variance.
        linear = variance + 4 * rho
        root = math.sqrt(linear**2 + 4 * variance * max(4 - 2 * rho, 0.0))
        return max(3, math.ceil((linear + root) / (2 * variance)))
    return max(2, math.ceil(rho / variance))


def _from_autograd(functions: Sequence[Function], x: Tensor, probes: list[Tensor]) -> Combinations:
    k, v, jt, j = len(probes), _flat(probes), [], []
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = x.requires_grad_()
        for function in functions:
            s = function(x)
            pairs = [vjp_jvp(s, x, probe) for probe in probes]
            jt.append(_flat([pair[0] for pair in pairs]))
            j.append(_flat([pair[1] for pair in pairs]))
    rounding, evaluations = _rounding(x, None), len(functions) * (1 + 2 * k)

    def estimates(jt_v: Tensor, j_v: Tensor) -> Estimates:
        defect = _duality_defect(v, jt_v, j_v)
        return _from_products(v, jt_v, j_v, defect, rounding, k * (k - 1), evaluations)

    return Combinations((torch.stack(jt), torch.stack(j)), estimates)


def _from_finite_differences(
    functions: Sequence[Function], x: Tensor, probes: list[Tensor], step: float
) -> Combinations:
    jt = []
    with torch.enable_grad():
        x = x.requires_grad_()
        for function in functions:
            s = function(x)
            jt.append(_flat([vjp(s, x, probe) for probe in probes]))
    x, v, all_jt_v = x.detach(), _flat(probes), torch.stack(jt)
    all_j_v = _differences(functions, x, probes, step)
    worst = (all_j_v - all_jt_v).square().sum(3).sum(0).argmax(1, keepdim=True).T
    all_errors = _errors(functions, x, v, all_j_v, worst, step)[:, :, 0]
    rounding, evaluations = _rounding(x, step), len(functions) * (3 * len(probes) + 3)

    def estimates(jt_v: Tensor, j_v: Tensor, error: Tensor) -> Estimates:
        # A backward pass that is no derivative of the field shows in the second alone.
        defect = (error.square().sum(1) / 2).maximum(_duality_defect(v, jt_v, j_v))
        return _from_products(v, jt_v, j_v, defect, rounding, v.shape[2], evaluations)

    return Combinations((all_jt_v, all_j_v, all_errors), estimates)


def _from_products(
    v: Tensor,
    jt_v: Tensor,
    j_v: Tensor,
    defect: Tensor,
    rounding: Tensor,
    comparisons: int,
    evaluations: int,
) -> Estimates:
    """From probes, Jᵀv and Jv, each (B, K, D)."""
    return Estimates(
        rotation=(j_v - jt_v).square().sum(2) / 2,
        identity=v.square().sum(2),
        cross=(v * (j_v + jt_v)).sum(2) / 2,
        norm=(j_v.square() + jt_v.square()).sum(2) / 2,
        defect=defect,
        pairs=False,
        comparisons=comparisons,
        rounding=rounding,
        evaluations=evaluations,
    )


def _duality_defect(v: Tensor, jt_v: Tensor, j_v: Tensor) -> Tensor:
    """½‖e‖² of the error e of Jv − Jᵀv, from probes, Jᵀv and Jv, each (B, K, D); shape (B,).

    vᵀ(Jw) = wᵀ(Jᵀv) whatever J is. For independent v and w, what the two differ by has the mean
    square ‖e‖².
    """
    k = v.shape[1]
    difference = _others(v @ j_v.mT - (v @ jt_v.mT).mT)
    return difference.square().sum((1, 2)) / (2 * k * (k - 1))


def _from_evaluations(
    functions: Sequence[Function], x: Tensor, probes: list[Tensor], step: float
) -> Combinations:
    k, v = len(probes), _flat(probes)
    columns = _differences(functions, x, probes, step)
    m = v @ columns.mT
    worst = (m - m.mT).square().sum(3).sum(0).topk(CHECKS, 1).indices.T
    all_errors = _errors(functions, x, v, columns, worst, step)
    of_itself = torch.zeros(len(x), CHECKS, k).scatter(2, worst.T[..., None], 1).bool()
    rounding = _rounding(x, step)

    def estimates(j_v: Tensor, errors: Tensor) -> Estimates:
        m = v @ j_v.mT
        defect = (errors @ v.mT).masked_fill(of_itself, 0.0)
        return Estimates(
            rotation=(m - m.mT).square().sum(2) / (2 * (k - 1)),
            identity=v.square().sum(2),
            cross=(v * j_v).sum(2),
            norm=j_v.square().sum(2),
            defect=defect.square().sum((1, 2)) / (CHECKS * (k - 1)),
            pairs=True,
            comparisons=CHECKS * (k - 1),
            rounding=rounding,
            evaluations=len(functions) * 2 * (k + CHECKS),
        )

    return Combinations((columns, all_errors), estimates)


def _differences(
    functions: Sequence[Function], x: Tensor, probes: list[Tensor], step: float
) -> Tensor:
    """Jv of every function and probe by central differences, (F, B, K, D)."""
    return torch.stack(
        [
            _flat([central_difference(function, x, probe, step) for probe in probes])
            for function in functions
        ]
    )


def _errors(
    functions: Sequence[Function],
    x: Tensor,
    v: Tensor,
    j_v: Tensor,
    checked: Tensor,
    step: float,
) -> Tensor:
    """The errors (F, B, C, D) of central differences ``j_v`` (F, B, K, D), along probes (C, B).

    Truncation grows as the square of the step, so that at √2 times the step it doubles: the
    difference is the truncation at the step itself, with 1.5 times the variance of its rounding.
    Callers look at the probes that show the most rotation, as few probes may have all of the error;
    of several functions, at those that show the most of them together.
    """
    sample = torch.arange(len(x))
    errors = []
    for function, products in zip(functions, j_v, strict=True):
        along = [v[sample, probe].view(x.shape).to(x) for probe in checked]
        again = [central_difference(function, x, w, math.sqrt(2) * step) for w in along]
        once = torch.stack([products[sample, probe] for probe in checked], 1)
        errors.append(_flat(again) - once)
    return torch.stack(errors)


def _rounding(x: Tensor, step: float | None) -> Tensor:
    """What products at ``x`` may err by, relative to ‖J‖_F, and agree in all the same; (B,).

    That is a few units in the last place, and for central differences the rounding of x ± step v.
    """
    eps = torch.finfo(x.dtype).eps
    shared = torch.full((len(x),), COMMON * eps, dtype=torch.float64)
    if step is None:
        return shared
    size = _flat([x])[:, 0].square().mean(1).sqrt()
    largest = float(size.max())
    if not step > eps * largest:
        kind = str(x.dtype).removeprefix("torch.")
        raise BadInput(
            f"step: found {step:g}, expected one that moves {kind} samples of size {largest:.3g}"
        )
    return shared.maximum(eps * size / step)


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


def _others(m: Tensor) -> Tensor:
    """``m`` (B, K, L) with zeros where a probe meets itself."""
    return m.masked_fill(torch.eye(*m.shape[1:], dtype=torch.bool), 0.0)


def _without_each(values: Tensor, gone: int) -> Tensor:
    """Means over all probes but one, of ``values`` (B, K) that lose ``gone`` times that probe's."""
    probes = values.shape[1]
    return (values.sum(1, keepdim=True) - gone * values) / (probes - gone)
