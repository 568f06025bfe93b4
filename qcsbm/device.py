"""Where tensors are computed."""

import torch

from qcsbm import gpus


def device() -> torch.device:
    """A GPU that this process holds by itself if this machine has one, see `qcsbm.gpus`."""
    gpus.claim()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
