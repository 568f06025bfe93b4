"""The SDE that adds noise to the data. Each member of `SDE` has a module in `qcsbm.score.sde`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from qcsbm.schema.base import Closed, Positive


class VE(Closed):
    """Variance exploding, from noise scale ``sigma_min`` to ``sigma_max``."""

    ends: ClassVar[tuple[str, str]] = ("sigma_min", "sigma_max")
    type: Literal["ve"]
    sigma_min: Positive
    sigma_max: Positive


class VP(Closed):
    """Variance preserving, at a rate that grows linearly from ``beta_min`` to ``beta_max``."""

    ends: ClassVar[tuple[str, str]] = ("beta_min", "beta_max")
    type: Literal["vp"]
    beta_min: Positive
    beta_max: Positive


# The second of the keys ``ends`` has to be above the first.
SDE = Annotated[VE | VP, Field(discriminator="type")]
