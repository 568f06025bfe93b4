"""The SDE that adds noise to the data. Each member of `SDE` has a module in `qcsbm.score.sde`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from qcsbm.schema.base import Closed, Positive


class VE(Closed):
    """Variance exploding: noise is added, and data are not scaled."""

    ends: ClassVar[tuple[str, str]] = ("sigma_min", "sigma_max")
    type: Literal["ve"]
    sigma_min: Positive
    """Noise scale at t = 0."""
    sigma_max: Positive
    """Noise scale at t = 1."""


class VP(Closed):
    """Variance preserving: data fade while noise is added."""

    ends: ClassVar[tuple[str, str]] = ("beta_min", "beta_max")
    type: Literal["vp"]
    beta_min: Positive
    """Rate at t = 0, from where it grows linearly."""
    beta_max: Positive
    """Rate at t = 1."""


# The second of the keys ``ends`` has to be above the first.
SDE = Annotated[VE | VP, Field(discriminator="type")]
