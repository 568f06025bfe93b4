"""The SDE that adds noise to the data: one module for each member of `qcsbm.schema.sde.SDE`."""

from qcsbm.score.sde.base import SDE, bcast
from qcsbm.score.sde.ve import VE

__all__ = ["SDE", "VE", "bcast"]
