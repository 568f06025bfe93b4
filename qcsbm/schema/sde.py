"""The SDE that adds noise to the data. Each member of `SDE` has a module in `qcsbm.score`."""

from typing import Literal

from qcsbm.schema.base import Closed, Positive


class VE(Closed):
    """Variance exploding, from noise scale ``sigma_min`` to ``sigma_max``."""

    type: Literal["ve"]
    sigma_min: Positive
    sigma_max: Positive


SDE = VE
