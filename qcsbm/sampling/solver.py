r"""Adaptive integration of a batch of ODEs in which every sample has its own step size.

.. math:: \frac{dy}{dt} = f(t, y), \qquad
   k_i = f\big(t + c_i h, \; y + h \textstyle\sum_{j<i} a_{ij} k_j\big), \qquad
   y_{next} = y + h \textstyle\sum_j a_{7j} k_j

by the Dormand–Prince pair of orders 5 and 4, whose last slope k_7 is the first one of the next
step. A step of a sample is accepted where r, the root mean square over its components of
``error / (atol + rtol · max(|y|, |y_next|))``, is below 1, with error = h Σ_j e_j k_j. Accepted or
not, the next step size is 0.9 r^(-1/5) times this one, at least 0.2 and at most 10 times.

A sample leaves the batch when it arrives. So no sample sees another one's error or pays for its
steps: result and cost of a sample depend on its batch only through rounding, as far as f keeps
samples apart. (Rounding may tip a step that is on the verge of acceptance.)

References:
    A family of embedded Runge-Kutta formulae (Dormand & Prince, 1980)
    Some Practical Runge-Kutta Formulas (Shampine, 1986), for the weights e of the error
    Solving Ordinary Differential Equations I (Hairer, Nørsett & Wanner, 1993), Section II.4, for
    the step sizes
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcsbm.runtime.errors import Diverged

# c_i and a_i for i = 2 ... 7; c_1 is 0.
NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
WEIGHTS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR_WEIGHTS = (71 / 86400, 0, -142 / 50085, 71 / 2880, -5751 / 169600, 44 / 1575, -1 / 60)

Slope = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Solution:
    """The state (B, D) at the end, and what it cost.

    ``nfe`` (B,) counts the evaluations of f at each sample: two that choose the first step, six for
    each step, accepted or not. Nothing else is evaluated, so that their sum is the whole cost.
    """

    y: Tensor
    nfe: Tensor


@torch.no_grad()
def integrate(
    f: Callable[..., Tensor],
    y: Tensor,
    t_start: float,
    t_end: float,
    rtol: float,
    atol: float,
    constants: Sequence[Tensor] = (),
    max_steps: int = 10_000,
) -> Solution:
    """The solution at ``t_end`` of ``dy/dt = f(t, y, *constants)`` from ``y`` at ``t_start``.

    ``y`` is (B, D). ``f`` maps t (b,) and y (b, D), both of ``y``'s dtype, to (b, D), sample by
    sample. It is called with the b ≤ B samples that are under way, and with their rows of the
    ``constants`` (B, ...). Time itself is kept in float64 and may run backwards. No graph is
    recorded.

    Raises:
        Diverged: a sample needs more than ``max_steps`` steps or meets a non-finite value.
    """
    end, nfe = torch.empty_like(y), torch.empty(len(y), dtype=torch.long, device=y.device)
    rows = torch.arange(len(y), device=y.device)

    def slope_at(t: Tensor, y: Tensor) -> Tensor:
        return f(t.to(y), y, *constants)

    t = y.new_full((len(y),), t_start, dtype=torch.float64)
    slope = slope_at(t, y)
    h = _within(_first_step_size(slope_at, t, y, slope, t_end, rtol, atol), t_end - t)
    for step in range(1, max_steps + 1):
        y_next, slope_next, error = _step(slope_at, t, y, slope, h)
        r = _rms(error / (atol + rtol * torch.maximum(y.abs(), y_next.abs())))
        if not r.isfinite().all():
            i = int((~r.isfinite()).nonzero()[0])
            raise _failure("infinite norm", rows[i], step, t[i], y[i])
        accepted = r < 1
        arrived = accepted & (h == t_end - t)
        t = torch.where(accepted, t + h, t)
        y = torch.where(accepted[:, None], y_next, y)
        slope = torch.where(accepted[:, None], slope_next, slope)
        h = _within(h * (0.9 * r ** (-1 / 5)).clamp(0.2, 10), t_end - t)
        if arrived.any():
            end[rows[arrived]], nfe[rows[arrived]] = y[arrived], 2 + 6 * step
            rows, t, y, slope, h, *constants = (
                a[~arrived] for a in (rows, t, y, slope, h, *constants)
            )
        if not len(rows):
            return Solution(end, nfe)
    raise _failure("reached max steps", rows[0], max_steps, t[0], y[0])


def _step(
    slope_at: Slope, t: Tensor, y: Tensor, slope: Tensor, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """State and slope after a step of size ``h`` (b,), and the estimate of the state's error."""
    h_y = h.to(y)[:, None]
    slopes = [slope]
    for c, a in zip(NODES, WEIGHTS, strict=True):
        y_next = y + h_y * _combine(a, slopes)
        slopes.append(slope_at(t + c * h, y_next))
    return y_next, slopes[-1], h_y * _combine(ERROR_WEIGHTS, slopes)


def _first_step_size(
    slope_at: Slope, t: Tensor, y: Tensor, slope: Tensor, t_end: float, rtol: float, atol: float
) -> Tensor:
    """Signed step sizes (B,) from the sizes of y and of its first two derivatives."""
    remaining = t_end - t
    scale = atol + rtol * y.abs()
    d_0, d_1 = _rms(y / scale), _rms(slope / scale)
    h_0 = torch.where((d_0 < 1e-5) | (d_1 < 1e-5), 1e-6, 0.01 * d_0 / d_1)
    h_0 = torch.minimum(h_0, remaining.abs().to(y))
    euler = y + (remaining.sign().to(y) * h_0)[:, None] * slope
    d_2 = _rms((slope_at(t + remaining.sign() * h_0, euler) - slope) / scale) / h_0
    largest = torch.maximum(d_1, d_2)
    h_1 = torch.where(largest <= 1e-15, 1e-6, (0.01 / largest) ** (1 / 5))
    return remaining.sign() * torch.minimum(100 * h_0, h_1)


def _within(h: Tensor, remaining: Tensor) -> Tensor:
    """``h``, cut where it leads past the end."""
    return torch.where(h.abs() > remaining.abs(), remaining, h)


def _combine(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    terms = (w * k for w, k in zip(weights, slopes, strict=True))
    return sum(terms, torch.zeros_like(slopes[0]))


def _rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1) / math.sqrt(x.shape[1])


def _failure(reason: str, i: Tensor, steps: int, t: Tensor, y: Tensor) -> Diverged:
    return Diverged(
        f"the ODE solver gave up on sample {int(i)} after {steps} steps ({reason}) at "
        f"t = {t:.6g}, where the entries of the state lay between {y.min():.6g} and {y.max():.6g}"
    )
