"""Denoisers of azula: the mean of a posterior, and a noise schedule of time from 0 to 1.

References:
    https://azula.readthedocs.io (azula.denoise, azula.noise)
"""

from typing import Any

import torch
from torch import Tensor

from qcsbm.adapters.field import Field
from qcsbm.runtime.errors import BadInput


def from_azula(
    denoiser: Any, *, data_range: tuple[float, float] | None = None, **arguments: Any
) -> Field:
    """The posterior mean of a ``denoiser``, kind ``x0``; it also gets the other ``arguments``.

    Among them may be the label of a class. A time that all samples have is given as a single
    number, as the library's samplers do.

    >>> import torch
    >>> from azula.denoise import GaussianDenoiser
    >>> from azula.linalg.covariance import IsotropicCovariance
    >>> from azula.noise import VPSchedule
    >>> normal = GaussianDenoiser(torch.zeros(2), IsotropicCovariance(torch.ones(())), VPSchedule())
    >>> field = from_azula(normal)
    >>> field.kind, field.schedule
    ('x0', VPSchedule(alpha_min=0.001, sigma_min=0.001))

    Raises:
        BadInput: ``denoiser`` is none of azula.
    """
    schedule = getattr(denoiser, "schedule", None)
    if not isinstance(denoiser, torch.nn.Module) or not callable(schedule):
        raise BadInput(
            f"denoiser: found an object of type {type(denoiser).__name__}, expected a denoiser of "
            "azula, a module with a schedule"
        )

    def function(x: Tensor, t: Tensor) -> Tensor:
        mean: Tensor = denoiser(x, t[0] if bool((t == t[0]).all()) else t, **arguments).mean
        return mean

    return Field(
        function,
        "x0",
        AzulaSchedule(schedule),
        type(denoiser).__name__,
        data_range=data_range,
        module=denoiser,
    )


class AzulaSchedule:
    """A noise schedule of azula, which maps time in [0, 1] to α and σ."""

    def __init__(self, schedule: Any):
        self.schedule = schedule

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in vars(self.schedule).items())
        return f"{type(self.schedule).__name__}({settings})"

    def mean(self, t: Tensor) -> Tensor:
        alpha: Tensor = self.schedule(t)[0]
        return alpha

    def std(self, t: Tensor) -> Tensor:
        sigma: Tensor = self.schedule(t)[1]
        return sigma

    def sigma(self, t: Tensor) -> Tensor:
        return self.std(t) / self.mean(t)

    def time(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`, which grows with time, by bisection.

        Raises:
            BadInput: there is not so much or so little noise at any time.
        """
        exact = sigma.double()
        low, high = torch.zeros_like(exact), torch.ones_like(exact)
        # Where float32 has put the noise level of an end past it.
        slack = 1e-6
        least, most = self.sigma(low) * (1 - slack), self.sigma(high) * (1 + slack)
        if not bool(((exact >= least) & (exact <= most)).all()):
            raise BadInput(
                f"noise level: found {exact.min():.4g} to {exact.max():.4g}, expected "
                f"{least.min():.4g} to {most.max():.4g}, those of {self}"
            )
        # To the last digit of float64.
        for _ in range(53):
            middle = (low + high) / 2
            below = self.sigma(middle) < exact
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return ((low + high) / 2).to(sigma)
