"""Where tensors are computed."""

import torch


def device() -> torch.device:
    """The GPU if this machine has one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
