r"""The largest rotations of a field's Jacobian, and the extreme eigenvalues of its symmetric part.

Of the Jacobian J at one sample, A = J − Jᵀ is antisymmetric and iA is Hermitian, with eigenvalues
in pairs ±σ. Every pair is a plane in which the field rotates, and σ is a singular value of A, there
twice. The largest eigenvalues of iA are therefore the largest singular values of A, once for each
plane. Since ‖A‖_F² = Σ 2σ² over all planes, the first k of
them have the share

.. math:: \frac{\sum_{j \le k} 2 \sigma_j^2}{\|A\|_F^2}.

The symmetric part S = (J + Jᵀ)/2 tells of the denoiser D(x) = (x + σ_t² s(x)) / α_t that belongs to
a score s. Were it a posterior mean, its Jacobian would be α_t / σ_t² times the covariance of the
posterior, hence symmetric and without negative eigenvalues. The symmetric part of D's Jacobian is
(I + σ_t² S) / α_t.

Both come from products with J and Jᵀ alone, by implicitly restarted Arnoldi and Lanczos iterations.
These approach the ends of a spectrum from inside: a negative eigenvalue that is found is there, as
far as products are exact.

References:
    ARPACK Users' Guide (Lehoucq, Sorensen & Yang, 1998)
    Hutch++: Optimal Stochastic Trace Estimation (Meyer et al., 2021), for the share
    Should EBMs Model the Energy or the Score? (Salimans & Ho, 2021);
    https://openreview.net/forum?id=9AS-TF2jRNb
"""

import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qcsbm.conservativeness.estimates import Products
from qcsbm.conservativeness.products import central_difference, jacobian, rademacher, vjp
from qcsbm.runtime.errors import BadInput, Diverged

# Up to so many dimensions batches give the full Jacobian in less time, and it is exact.
DENSE = 1024
# Rows of it from one backward pass.
COPIES = 128
# Restarts of an iteration before it is given up.
RESTARTS = 30
# Of a residual, relative to the eigenvalue's distance from the far side of the spectrum.
TOLERANCE = 1e-3
# For what is outside the planes.
PROBES = 8

# Where a Krylov space is exhausted, SciPy 1.17 goes on from a vector of this generator's.
_SEED = {"rng": 0} if "rng" in inspect.signature(eigsh).parameters else {}


@dataclass(frozen=True)
class Spectrum:
    """Of the Jacobian J at one sample, with A = J − Jᵀ and S = (J + Jᵀ)/2.

    ``rotation`` (k,) has the largest singular values of A, one for each plane, in falling order,
    float64 on the CPU. ``share`` is what these planes hold of ‖A‖_F², and None where A is 0 or no
    plane was found; ``share_stderr`` is its standard error, 0 where it is exact. ``symmetric`` has
    the lowest and the highest eigenvalue of S. ``evaluations`` counts passes of the field, forward
    and backward. ``unconverged`` is None, or one sentence on what did not converge: planes that
    did not are missing, and an eigenvalue that did not is None.
    """

    rotation: Tensor
    share: float | None
    share_stderr: float | None
    symmetric: tuple[float | None, float | None]
    evaluations: int
    unconverged: str | None = None


def spectrum(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    planes: int,
    products: Products,
    step: float,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """The spectrum of the field ``function`` at one sample ``x`` (1, ...).

    ``function`` maps points (B, ...) to values like them; samples of a batch must not interact.
    At most D / 2 of D dimensions' planes are found, whatever number ``planes`` is asked for.
    ``step`` is that of `central_difference`, for products by "finite_differences" alone. The
    iterations start at a vector drawn from the CPU's ``generator``, or from one of its own that is
    the same at every call.

    Raises:
        BadInput: products that are "forward", which have no Jᵀ, or no planes.
        Diverged: a product that is not finite.
    """
    if products == "forward":
        raise BadInput(
            "products: found forward, expected autograd or finite_differences for a spectrum, "
            "which needs products with the transposed Jacobian"
        )
    if planes < 1:
        raise BadInput(f"planes: found {planes}, expected at least 1")
    generator = generator or torch.Generator().manual_seed(0)
    d = x.numel()
    planes = min(planes, d // 2)
    if d <= DENSE or planes >= d - 1:
        return _dense(function, x, planes, products)
    pair = _Products(function, x, 2, products, step)
    rotation, basis = _rotation(pair, planes, generator)
    share, stderr = _share(pair, rotation, basis, generator)
    single = _Products(function, x, 1, products, step)
    low, high = _extremes(single, _draw(1, d, generator)[0])
    missing = planes - len(rotation)
    failed = [f"{missing} of {planes} rotation planes"] if missing else []
    failed += [
        f"the {name} eigenvalue of the symmetric part"
        for name, end in (("lowest", low), ("highest", high))
        if end is None
    ]
    return Spectrum(
        torch.from_numpy(rotation),
        share,
        stderr,
        (low, high),
        pair.evaluations + single.evaluations,
        f"not converged after {RESTARTS} restarts: {', '.join(failed)}" if failed else None,
    )


def denoiser_eigenvalues(
    symmetric: tuple[float | None, float | None], std: float, mean: float
) -> tuple[float | None, float | None]:
    """The extreme eigenvalues of the symmetric part of ∂D/∂x, D(x) = (x + std² s(x)) / mean.

    ``symmetric`` are those of the score s at x, as in `Spectrum`. A negative one says that D is no
    posterior mean, whatever the prior.
    """
    low, high = (None if value is None else (1 + std**2 * value) / mean for value in symmetric)
    return low, high


def _dense(
    function: Callable[[Tensor], Tensor], x: Tensor, planes: int, products: Products
) -> Spectrum:
    d = x.numel()
    with torch.enable_grad(), _attention(products):
        n = min(d, COPIES)
        copies = x.detach().repeat(n, *(1,) * (x.dim() - 1)).requires_grad_()
        j = jacobian(function(copies), copies, copies=n)[0].cpu().double()
    if not j.isfinite().all():
        raise Diverged("spectrum: the Jacobian is not finite")
    a = j - j.T
    rotation = torch.linalg.eigvalsh(1j * a).flip(0)[:planes].clamp(min=0)
    squared_norm = float(a.square().sum())
    share = 2 * float(rotation.square().sum()) / squared_norm if squared_norm else None
    ends = torch.linalg.eigvalsh((j + j.T) / 2)
    return Spectrum(
        rotation,
        share,
        None if share is None else 0.0,
        (float(ends[0]), float(ends[-1])),
        evaluations=1 + d,
    )


class _Products:
    """Jv and Jᵀv at the sample ``x`` (1, ...), for ``n`` vectors v at a time.

    One forward pass serves all of them.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        n: int,
        products: Products,
        step: float,
    ) -> None:
        self.function = function
        self.products = products
        self.step = step
        with torch.enable_grad(), _attention(products):
            self.x = x.detach().repeat(n, *(1,) * (x.dim() - 1)).requires_grad_()
            self.s = function(self.x)
            self.evaluations = n
            if products == "autograd":
                # As in `qcsbm.conservativeness.products.vjp_jvp`, for all vectors at once.
                self.w = torch.zeros_like(self.x).requires_grad_()
                self.jt_w = vjp(self.s, self.x, self.w, create_graph=True)
                self.evaluations += n

    def __call__(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(Jv, Jᵀv) of ``vectors`` (n, D), float64."""
        v = torch.from_numpy(vectors).to(self.x).view_as(self.x)
        with _attention(self.products):
            jt_v = vjp(self.s, self.x, v)
            if self.products == "autograd":
                (j_v,) = torch.autograd.grad(self.jt_w, self.w, v, retain_graph=True)
                self.evaluations += 2 * len(v)
            else:
                # As long as a probe of ±1, which the step is meant for.
                size = v.flatten(1).square().mean(1).sqrt().view(-1, *(1,) * (v.dim() - 1))
                size = size.where(size > 0, 1.0)
                j_v = size * central_difference(self.function, self.x, v / size, self.step)
                self.evaluations += 3 * len(v)
        found = [p.detach().flatten(1).cpu().double() for p in (j_v, jt_v)]
        if not all(p.isfinite().all() for p in found):
            raise Diverged("spectrum: a product with the Jacobian is not finite")
        return found[0].numpy(), found[1].numpy()


def _attention(products: Products) -> AbstractContextManager[None]:
    """Fused attention has no second derivative."""
    return sdpa_kernel(SDPBackend.MATH) if products == "autograd" else nullcontext()


def _draw(n: int, d: int, generator: torch.Generator) -> np.ndarray:
    return rademacher((n, d), generator).double().numpy()


def _rotation(
    products: _Products, planes: int, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Singular values (k,), and an orthonormal basis (D, 2k) of the planes that are not 0."""

    def a(vectors: np.ndarray) -> np.ndarray:
        j_v, jt_v = products(vectors)
        return j_v - jt_v

    def hermitian(v: np.ndarray) -> np.ndarray:
        """Outside of the ``vectors`` that were found."""
        v = v - vectors @ (vectors.conj().T @ v)
        real, imaginary = a(np.stack([v.real, v.imag]))
        product = 1j * real - imaginary
        return product - vectors @ (vectors.conj().T @ product)

    d = products.x[0].numel()
    start = _draw(2, d, generator)
    size = _size(a(start), start)
    if size == 0:
        return np.zeros(planes), np.zeros((d, 0))
    vectors = np.zeros((d, 0), complex)
    values, vectors = _largest(hermitian, planes, _draw(1, d, generator)[0] + 0j, 2 * size)
    # That sees one of several planes with the same σ. The others are seen from elsewhere, until
    # none outside of what was found is larger than the last.
    for _ in range(planes if len(values) == planes else 0):
        more, vector = _largest(hermitian, 1, _draw(1, d, generator)[0] + 0j, 2 * size)
        if not len(more) or more[0] < values[planes - 1] + TOLERANCE * size:
            break
        values, vectors = np.append(values, more), np.concatenate([vectors, vector], 1)
        order = np.argsort(-values)
        values, vectors = values[order], vectors[:, order]
    values, vectors = values[:planes], vectors[:, :planes]
    vectors = vectors[:, values > TOLERANCE * size]
    return values.clip(0), np.linalg.qr(np.concatenate([vectors.real, vectors.imag], 1))[0]


def _share(
    products: _Products, rotation: np.ndarray, basis: np.ndarray, generator: torch.Generator
) -> tuple[float | None, float | None]:
    """Of the planes in ‖A‖_F², and its standard error.

    What the planes hold is known. ‖A‖_F² outside of them is estimated from probes without their
    part in the planes, so that the share is never above 1, and exact where nothing is outside.
    """
    if not basis.size:
        return None, None
    found = 2 * float(np.square(rotation).sum())
    outside: list[float] = []
    while len(outside) < PROBES:
        v = _draw(2, len(basis), generator)
        j_v, jt_v = products(v - v @ basis @ basis.T)
        outside.extend(np.square(j_v - jt_v).sum(1))
    total = found + float(np.mean(outside))
    stderr = found / total**2 * float(np.std(outside, ddof=1)) / math.sqrt(PROBES)
    return found / total, stderr


def _extremes(products: _Products, start: np.ndarray) -> tuple[float | None, float | None]:
    """The lowest and the highest eigenvalue of the symmetric part."""

    def s(v: np.ndarray) -> np.ndarray:
        j_v, jt_v = products(v[None])
        return (j_v + jt_v)[0] / 2

    size = _size(s(start), start)
    if size == 0:
        return 0.0, 0.0
    high, _ = _largest(s, 1, start, 2 * size)
    low, _ = _largest(lambda v: -s(v), 1, start, 2 * size)
    return (-float(low[0]) if len(low) else None), (float(high[0]) if len(high) else None)


def _size(product: np.ndarray, v: np.ndarray) -> float:
    """The root mean square of eigenvalues, by one probe."""
    return float(np.linalg.norm(product) / np.linalg.norm(v))


def _largest(
    product: Callable[[np.ndarray], np.ndarray], k: int, start: np.ndarray, shift: float
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` largest eigenvalues of a Hermitian operator, falling, and vectors (D, k).

    Fewer where not all converge. ARPACK compares a residual with its eigenvalue; without the
    ``shift``, those near 0 would never converge.
    """
    d = len(start)
    operator = LinearOperator(
        (d, d), matvec=lambda v: product(v.ravel()) + shift * v.ravel(), dtype=start.dtype
    )
    try:
        values, vectors = eigsh(
            operator, k, which="LA", v0=start, maxiter=RESTARTS, tol=TOLERANCE, **_SEED
        )
    except ArpackNoConvergence as failure:
        values, vectors = failure.eigenvalues.real, failure.eigenvectors
    order = np.argsort(-values)
    return values[order] - shift, vectors[:, order]
