"""What networks compute their products and convolutions in."""

import torch
from torch import Tensor, nn

from qcsbm.runtime.device import allow_tf32
from qcsbm.schema.base import Precision


class InPrecision(nn.Module):
    """A model whose network computes in ``precision``, by autocast.

    Its weights, and all that is made from its output, stay as they are.
    """

    precision = torch.float32

    def compute_in(self, precision: Precision) -> None:
        """Have the network compute in ``precision`` from now on.

        "tf32" is a switch of the whole process, derivatives included. A CPU has no such arithmetic:
        there it is float32.
        """
        allow_tf32(precision == "tf32")
        self.precision = torch.bfloat16 if precision == "bfloat16" else torch.float32

    def lowered(self, x: Tensor) -> torch.autocast:
        """Within, products and convolutions on the device of ``x`` are in that precision."""
        lower = self.precision != torch.float32
        return torch.autocast(x.device.type, self.precision if lower else None, enabled=lower)
