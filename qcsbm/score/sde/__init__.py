"""The SDE that adds noise to the data: one module for each member of ``qcsbm.schema.sde.SDE``."""

from qcsbm.score.sde.base import SDE, bcast
from qcsbm.score.sde.ve import VE
from qcsbm.score.sde.vp import VP

__all__ = ["MEMBERS", "SDE", "VE", "VP", "bcast"]

# By the type that settings have.
MEMBERS: dict[str, type[VE | VP]] = {"ve": VE, "vp": VP}
