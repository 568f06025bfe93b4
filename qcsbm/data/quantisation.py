r"""Between integer levels k = 0, …, L − 1 and real data in [0, 1].

A model may be trained on the grid points k / (L − 1), or on uniformly dequantised data
(k + u) / L with u uniform on (0, 1). A density p of the latter bounds the probability of levels,

.. math:: E_u[\log p((k + u) / L)] - D \log L \le \log P(k),

which is where the offset of log2 L bits per dimension comes from.

References:
    A note on the evaluation of generative models (Theis et al., 2016), Section 3.1;
    https://arxiv.org/abs/1511.01844
"""

import math

import torch
from torch import Tensor

from qcsbm.runtime.errors import Diverged


def to_unit(k: Tensor, levels: int) -> Tensor:
    """The grid points k / (levels − 1) in [0, 1], float32, shaped like ``k``."""
    return k.float() / (levels - 1)


def dequantise(k: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """(k + u) / levels in (0, 1), float32, shaped like ``k``, for at most 256 levels.

    u is uniform over the 2¹⁵ midpoints of an even partition of (0, 1): k + u is then exact in
    float32, so that no x rounds into the next level and none reaches 1.
    """
    u = (torch.randint(0, 2**15, k.shape, generator=generator) + 0.5) / 2**15
    return (k + u.to(k.device)) / levels


def quantise(x: Tensor, levels: int, dequantised: bool) -> Tensor:
    """The level of each entry, clipped to 0, …, levels − 1 ≤ 255; uint8, shaped like ``x``.

    ``dequantised`` tells what the model of ``x`` was trained on: cells (k + u) / levels are
    floored, grid points k / (levels − 1) rounded.

    Raises:
        Diverged: an entry is not finite.
    """
    if not x.isfinite().all():
        raise Diverged("samples to quantise are not finite")
    k = (x * levels).floor() if dequantised else (x * (levels - 1)).round()
    return k.clamp(0, levels - 1).to(torch.uint8)


def bits_per_dim_offset(levels: int) -> float:
    """Bits per dimension to add to the NLL of x in [0, 1), so that it is the NLL of ``levels`` x.

    The density of levels x, whose cells have unit width, is smaller by 1 / levels per dimension.
    """
    return math.log2(levels)


def require_dequantised(x: Tensor, levels: int) -> None:
    """Refuse ``x`` (B, ...) unless it is dequantised data.

    Raises:
        ValueError: an entry is outside [0, 1), or some sample lies wholly on one of the grids
            k / levels and k / (levels − 1), up to the rounding of float32.
    """
    if not ((x >= 0) & (x < 1)).all():
        raise ValueError(
            f"data to evaluate: found values from {x.min():.6g} to {x.max():.6g}, expected "
            "dequantised data in [0, 1)"
        )
    for scale in (levels, levels - 1):
        y = x.flatten(1).double() * scale
        distance = (y - y.round()).abs().amax(1)
        on_grid = distance < levels * torch.finfo(torch.float32).eps
        if on_grid.any():
            raise ValueError(
                f"data to evaluate: found sample {int(on_grid.nonzero()[0])} on the grid "
                f"k / {scale}, expected uniformly dequantised data (k + u) / {levels}"
            )
