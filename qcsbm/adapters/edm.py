"""Denoisers in the convention of EDM, D(x; σ): data plus noise in, the mean of the data out.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), Eq. 3;
    https://arxiv.org/abs/2206.00364
"""

from collections.abc import Callable

from torch import Tensor, nn

from qcsbm.adapters.field import Field
from qcsbm.score.schedules import EDM


def from_edm(
    denoiser: Callable[..., Tensor],
    label: Tensor | None = None,
    *,
    schedule: EDM | None = None,
    data_range: tuple[float, float] = (-1.0, 1.0),
    name: str = "EDM",
) -> Field:
    """The ``denoiser`` D(x, σ) of x (B, ...) and σ (B,), or D(x, σ, labels).

    A conditional one is given ``label`` (L,), which stands for one class, as labels (B, L).
    ``schedule`` has the lowest and the highest noise level, those of the paper unless it is given.

    >>> import torch
    >>> field = from_edm(lambda x, sigma: x / (1 + sigma[:, None] ** 2))
    >>> field(torch.ones(1, 2), torch.ones(1))
    tensor([[0.5000, 0.5000]])
    """

    def function(x: Tensor, sigma: Tensor) -> Tensor:
        if label is None:
            return denoiser(x, sigma)
        return denoiser(x, sigma, label.to(x).expand(len(x), -1))

    return Field(
        function,
        "denoiser",
        schedule or EDM(),
        name,
        data_range=data_range,
        module=denoiser if isinstance(denoiser, nn.Module) else None,
    )
