r"""How much noise there is at time t: x_t = α(t) x_0 + σ(t) z with z standard normal.

``mean`` is α and ``std`` is σ, as in `qcsbm.score.sde`, whose SDEs are schedules. ``sigma`` is
σ(t) / α(t), the noise level in units of the data: it says the same of every model, whatever its
time means, and ``time`` finds the time at which a model has that noise.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    Section 2; https://arxiv.org/abs/2206.00364
    Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
    (Liu et al., 2022), Eq. 1; https://arxiv.org/abs/2209.03003
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), Eq. 4;
    https://arxiv.org/abs/2006.11239
"""

import math
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from qcsbm.runtime.errors import BadInput
from qcsbm.score.sde import MEMBERS, SDE, VE, VP


class Schedule(Protocol):
    """Functions of time (B,), of its shape and dtype."""

    def mean(self, t: Tensor) -> Tensor:
        """α(t), what is left of the data."""

    def std(self, t: Tensor) -> Tensor:
        """σ(t), the standard deviation of the noise."""

    def sigma(self, t: Tensor) -> Tensor:
        """σ(t) / α(t), the noise level in units of the data."""

    def time(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`."""


@dataclass(frozen=True)
class EDM:
    """Time is the noise level itself: α = 1 and σ = t, between ``sigma_min`` and ``sigma_max``."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def mean(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def std(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight line from data at t = 0 to noise at t = 1: α = 1 − t and σ = t.

    A model with data at 1 and noise at 0 is one of this schedule at 1 − t, with −1 times its
    velocity.
    """

    def mean(self, t: Tensor) -> Tensor:
        return 1 - t

    def std(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def time(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)


class Discrete:
    """A model that was trained on steps 0 … n − 1, with ``alpha`` (n,) and ``sigma`` (n,) of each.

    Time is the step. Between two steps α² and σ² are linear: of a variance-preserving model they
    still add up to 1.

    Raises:
        BadInput: fewer than two steps, or noise that does not grow relative to the data.
    """

    def __init__(self, alpha: Tensor, sigma: Tensor):
        alpha, sigma = alpha.detach().double().cpu(), sigma.detach().double().cpu()
        if alpha.dim() != 1 or alpha.shape != sigma.shape or len(alpha) < 2:
            raise BadInput(
                f"schedule: found α of shape {tuple(alpha.shape)} and σ of shape "
                f"{tuple(sigma.shape)}, expected two rows of the same two or more steps"
            )
        self.ratio = sigma / alpha
        if not (self.ratio.diff() > 0).all() or not (self.ratio >= 0).all():
            raise BadInput(
                "schedule: found σ / α that does not grow, expected more from step to step"
            )
        self.squares = torch.stack([alpha, sigma]).square()

    def __repr__(self) -> str:
        return f"Discrete({len(self.ratio)} steps)"

    def mean(self, t: Tensor) -> Tensor:
        return self._at(t)[0]

    def std(self, t: Tensor) -> Tensor:
        return self._at(t)[1]

    def sigma(self, t: Tensor) -> Tensor:
        mean, std = self._at(t)
        return std / mean

    def time(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`, in general between two steps.

        Raises:
            BadInput: no step has so much or so little noise.
        """
        low, high = float(self.ratio[0]), float(self.ratio[-1])
        r = _clamped(sigma, low, high, "noise level", ", as the steps of this model have")
        k = (torch.searchsorted(self.ratio, r) - 1).clamp(0, len(self.ratio) - 2)
        alpha, sigma_k = self.squares[:, k]
        alpha_step, sigma_step = self.squares[:, k + 1] - self.squares[:, k]
        past = (r**2 * alpha - sigma_k) / (sigma_step - r**2 * alpha_step)
        return (k + past).to(sigma)

    def _at(self, t: Tensor) -> Tensor:
        """α and σ at ``t`` (B,); shape (2, B)."""
        step = _clamped(t, 0, len(self.ratio) - 1, "time", ", a step of this model")
        k = step.detach().floor().long().clamp(max=len(self.ratio) - 2)
        squares = torch.lerp(self.squares[:, k], self.squares[:, k + 1], step - k)
        return squares.sqrt().to(t)


def _clamped(value: Tensor, low: float, high: float, name: str, why: str) -> Tensor:
    """``value`` in float64 on the CPU, where rounding to float32 may have put it past the ends."""
    exact = value.double().cpu()
    slack = 1e-6
    if not bool(((exact >= low * (1 - slack)) & (exact <= high * (1 + slack))).all()):
        found = ", ".join(f"{number:.4g}" for number in exact.detach().flatten()[:5].tolist())
        raise BadInput(f"{name}: found {found}, expected {low:.4g} to {high:.4g}{why}")
    return exact.clamp(low, high)


# By the names that a command line has for them.
NAMED: dict[str, type[VE | VP | EDM | RectifiedFlow]] = {
    **MEMBERS,
    "edm": EDM,
    "rectified_flow": RectifiedFlow,
}


def parse(text: str) -> VE | VP | EDM | RectifiedFlow:
    """The schedule that ``text`` names, such as ``edm`` or ``ve:sigma_min=0.02,sigma_max=100``.

    Raises:
        BadInput: there is no such schedule, or it has no such setting.
    """
    name, _, rest = text.partition(":")
    if name not in NAMED:
        raise BadInput(f"schedule: found {name!r}, expected one of {', '.join(NAMED)}")
    keys = [field.name for field in fields(NAMED[name])]
    settings = {}
    for part in rest.split(",") if rest else []:
        key, _, value = part.partition("=")
        number = _positive(value)
        if key not in keys or number is None:
            raise BadInput(
                f"schedule: found {part!r} for {name}, expected a positive number for "
                f"{' or '.join(keys) or 'none'}, as in key=1.0"
            )
        settings[key] = number
    return NAMED[name](**settings)


def _positive(text: str) -> float | None:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    return None


def levels(schedule: Schedule, n: int) -> Tensor:
    """Times of ``n`` noise levels σ / α, equidistant in their logarithm; float64, shape (n,).

    They run from 0.01 to 50, which are those of the paper, or as far as the schedule does. Of a
    `Discrete` one they are steps, and two of them may be the same.
    """
    low, high = ends(schedule)
    logs = torch.tensor([max(low, 0.01), min(high, 50.0)], dtype=torch.float64).log()
    sigma = torch.linspace(float(logs[0]), float(logs[1]), n, dtype=torch.float64).exp()
    times = schedule.time(sigma)
    return times.round() if isinstance(schedule, Discrete) else times


def ends(schedule: Schedule) -> tuple[float, float]:
    """The lowest and the highest noise level that a model of the schedule knows."""
    if isinstance(schedule, EDM):
        return schedule.sigma_min, schedule.sigma_max
    if isinstance(schedule, Discrete):
        return float(schedule.ratio[0]), float(schedule.ratio[-1])
    first = schedule.t_min if isinstance(schedule, SDE) else 0.0
    low, high = schedule.sigma(torch.tensor([first, 1.0], dtype=torch.float64)).tolist()
    return low, high
