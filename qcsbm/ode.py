r"""Adaptive integration of a batch of ODEs in which every sample has its own step size.

.. math:: \frac{dy}{dt} = f(t, y)

by the Dormand–Prince pair of orders 5 and 4. A step of a sample is accepted where the root mean
square over its components of error / (atol + rtol · max(|y|, |y_next|)) is below 1. No sample sees
another one's error: result and cost of a sample depend on its batch only through rounding, as far
as f keeps samples apart. (Rounding may tip a step that is on the verge of acceptance.)

References:
    A family of embedded Runge-Kutta formulae (Dormand & Prince, 1980)
    torchode: A Parallel ODE Solver for PyTorch (Lienen & Günnemann, 2022);
    https://arxiv.org/abs/2210.12375
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchode
from torch import Tensor
from torchode.interpolation import LinearInterpolation


@dataclass(frozen=True)
class Solution:
    """The state (B, D) at the end, and what it cost.

    ``nfe`` (B,) counts the evaluations that each sample needed. ``calls`` counts the calls of f.
    Each is on the whole batch, finished samples included: as many as the slowest sample needed.
    """

    y: Tensor
    nfe: Tensor
    calls: int


class _Dopri5(torchode.Dopri5):
    """The library's step, which also remembers where every sample stood before it."""

    def step(self, term, running, y0, t0, *args, **kwargs):
        self.y, self.t = y0, t0
        return super().step(term, running, y0, t0, *args, **kwargs)

    def build_interpolation(self, data):
        # Only the end of the last step is ever asked for. There the line through both ends is
        # exact, whereas the library's quartic loses a digit to cancellation.
        return LinearInterpolation(data.t0, data.dt, data.y0, data.y1)


@torch.no_grad()
def integrate(
    f: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    t_start: float,
    t_end: float,
    rtol: float,
    atol: float,
    max_steps: int = 10_000,
) -> Solution:
    """The solution at ``t_end`` of dy/dt = f(t, y) from ``y`` (B, D) at ``t_start``.

    ``f`` maps t (B,) and y (B, D), both of ``y``'s dtype, to (B, D), sample by sample; time itself
    is kept in float64 and may run backwards. No graph is recorded.

    Raises:
        ArithmeticError: a sample needs more than ``max_steps`` steps or meets a non-finite value.
    """
    term = torchode.ODETerm(lambda t, y: f(t.to(y), y))
    method = _Dopri5(term)
    controller = torchode.IntegralController(atol=atol, rtol=rtol, term=term)
    start, end = (y.new_full((len(y),), t, dtype=torch.float64) for t in (t_start, t_end))
    solution = torchode.AutoDiffAdjoint(method, controller, max_steps=max_steps).solve(
        torchode.InitialValueProblem(y, start, end)
    )
    failed = solution.status.nonzero()
    if len(failed):
        i = int(failed[0])
        reason = torchode.Status(int(solution.status[i])).name.lower().replace("_", " ")
        raise ArithmeticError(
            f"the ODE solver gave up on sample {i} after {int(solution.stats['n_steps'][i])} steps "
            f"({reason}) at t = {method.t[i]:.6g}, where the entries of the state lay between "
            f"{method.y[i].min():.6g} and {method.y[i].max():.6g}"
        )
    # Two evaluations choose the first step size; the first of a step's stages is the last one of
    # the step before.
    nfe = 2 + (method.tableau.n_stages - 1) * solution.stats["n_steps"]
    return Solution(solution.ys[:, 0], nfe, int(solution.stats["n_f_evals"].max()))
