"""A small noise-conditional multilayer perceptron for points of the plane.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Section 3.2; https://arxiv.org/abs/2209.12753
"""

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Points 2-64-128-256 and log σ 1-64-256, added, then 256-2; swish between the layers.

    The sum goes through one more swish, so that the noise scale acts differently at every x:
    appended to the 256 features instead, it would do no more than add a vector to the output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(
            nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 256)
        )
        self.noise = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 256))
        self.output = nn.Linear(256, 2)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """A vector for each point of ``x`` (B, 2) at its noise scale ``sigma`` (B,); (B, 2)."""
        return self.output(F.silu(self.point(x) + self.noise(sigma.log()[:, None])))
