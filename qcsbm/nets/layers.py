r"""The building blocks of NCSN++ in plain PyTorch, every one differentiable any number of times.

Feature maps are (B, C, H, W); samples of a batch never interact. With taps k₁ of even length K and
the filter k = k₁k₁ᵀ / (Σk₁)², the resampling by 2 at pixel o is

.. math:: (\downarrow x)_o = \sum_i x_i \, k_{2o + K/2 - i}, \qquad
   (\uparrow x)_o = 4 \sum_i x_i \, k_{o + K/2 - 1 - 2i},

with zeros outside the image. The taps (1, 1) give the mean of 2 × 2 pixels and the repetition of
each pixel.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    Appendix H; https://arxiv.org/abs/2011.13456
    Making Convolutional Networks Shift-Invariant Again (Zhang, 2019);
    https://arxiv.org/abs/1904.11486
    Analyzing and Improving the Image Quality of StyleGAN (Karras et al., 2020), for the resampling
    convolutions; https://arxiv.org/abs/1912.04958
    Large Scale GAN Training for High Fidelity Natural Image Synthesis (Brock et al., 2019), for the
    residual block that resamples; https://arxiv.org/abs/1809.11096
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcsbm.runtime.errors import BadInput


def fan_avg_uniform_(weight: Tensor, scale: float = 1.0) -> None:
    """Fill ``weight`` (out, in, ...) from U(-a, a) with variance scale / fan average.

    A scale of 0 stands for 1e-10: the layer starts close to zero and still passes gradients.
    """
    fan_avg = (weight.shape[0] + weight.shape[1]) / 2 * weight[0, 0].numel()
    bound = math.sqrt(3 * (scale or 1e-10) / fan_avg)
    nn.init.uniform_(weight, -bound, bound)


def linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer with fan-average uniform weights and zero biases."""
    layer = nn.Linear(in_features, out_features)
    fan_avg_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Conv(nn.Conv2d):
    """A ``size`` × ``size`` convolution with fan-average uniform weights and zero biases.

    It keeps the resolution unless ``stride`` or ``padding`` are given.
    """

    bias: nn.Parameter  # a convolution of PyTorch may have none

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        scale: float = 1.0,
        stride: int = 1,
        padding: int | None = None,
    ):
        padding = size // 2 if padding is None else padding
        super().__init__(in_channels, out_channels, size, stride, padding)
        fan_avg_uniform_(self.weight, scale)
        nn.init.zeros_(self.bias)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in min(channels // 4, 32) groups; BadInput where they do not fit."""
    groups = min(channels // 4, 32)
    if groups == 0 or channels % groups:
        raise BadInput(
            f"group normalisation cannot split {channels} channels into {groups} equal groups; "
            "choose nf and ch_mult so that every width is a multiple of min(width // 4, 32)"
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)


def combine(x: Tensor, y: Tensor, rescale: bool) -> Tensor:
    """x + y, divided by √2 where ``rescale``, which keeps the variance of independent terms."""
    return (x + y) / math.sqrt(2) if rescale else x + y


class FourierEmbedding(nn.Module):
    """Sines and cosines of 2πw log σ at fixed frequencies w ~ N(0, scale²): (B,) to (B, 2n).

    References:
        Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains
        (Tancik et al., 2020); https://arxiv.org/abs/2006.10739
    """

    frequencies: Tensor

    def __init__(self, n: int, scale: float):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(n) * scale)

    def forward(self, sigma: Tensor) -> Tensor:
        # Phases reach thousands of radians, where rounding shows: the order of these products
        # decides the result.
        phase = sigma.log()[:, None] * self.frequencies * (2 * math.pi)
        return torch.cat([phase.sin(), phase.cos()], 1)


class FIR(nn.Module):
    """Keeps the filter k of the taps (K,) as ``kernel`` (1, 1, K, K), which sums to 1."""

    kernel: Tensor

    def __init__(self, taps: Sequence[int]):
        super().__init__()
        if len(taps) % 2:
            raise BadInput(f"fir_kernel: {taps} has {len(taps)} taps, expected an even number")
        k = torch.tensor(taps, dtype=torch.get_default_dtype())
        kernel = torch.outer(k, k) / k.sum() ** 2
        self.register_buffer("kernel", kernel[None, None], persistent=False)
        self.taps = len(taps)

    def depthwise(self, channels: int) -> Tensor:
        """The filter of every channel, (channels, 1, K, K)."""
        return self.kernel.expand(channels, -1, -1, -1)

    def smooth(self, x: Tensor, padding: int, stride: int = 1) -> Tensor:
        """The convolution of every channel with k, hence the flip: PyTorch's correlates."""
        channels = x.shape[1]
        kernel = self.depthwise(channels).flip(2, 3)
        return F.conv2d(x, kernel, stride=stride, padding=padding, groups=channels)


class Downsample(FIR):
    """Half the resolution: smooth, then keep every second pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(x, padding=self.taps // 2 - 1, stride=2)


class Upsample(FIR):
    """Twice the resolution: put zeros between pixels, then smooth."""

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel, padding = 4 * self.depthwise(channels), self.taps // 2 - 1
        return F.conv_transpose2d(x, kernel, stride=2, padding=padding, groups=channels)


class DownsampleConv(FIR):
    """Smooth, then convolve 3 × 3 with stride 2; the border is padded once, before both."""

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[int]):
        super().__init__(taps)
        self.conv = Conv(in_channels, out_channels, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.smooth(x, padding=self.taps // 2))


class StridedConv(nn.Module):
    """A 3 × 3 convolution with stride 2, without a filter and padded on the right and below."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv(in_channels, out_channels, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions, the noise embedding added between them, around a shortcut.

    ``resample`` is applied to the branch and to the shortcut. The shortcut is a 1 × 1 convolution
    wherever widths or resolutions differ, the identity elsewhere.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_features: int,
        dropout: float,
        skip_rescale: bool,
        init_scale: float,
        shortcut_scale: float = 1.0,
        resample: nn.Module | None = None,
    ):
        super().__init__()
        self.norm_0 = group_norm(in_channels)
        self.conv_0 = Conv(in_channels, out_channels, 3)
        self.dense = linear(embedding_features, out_channels)
        self.norm_1 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_1 = Conv(out_channels, out_channels, 3, init_scale)
        changes = in_channels != out_channels or resample is not None
        self.shortcut = (
            Conv(in_channels, out_channels, 1, shortcut_scale) if changes else nn.Identity()
        )
        self.resample = resample or nn.Identity()
        self.skip_rescale = skip_rescale

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, in, H, W) and the activated embedding (B, features) to (B, out, H', W')."""
        h = self.conv_0(self.resample(F.silu(self.norm_0(x))))
        h = h + self.dense(embedding)[:, :, None, None]
        h = self.conv_1(self.dropout(F.silu(self.norm_1(h))))
        return combine(self.shortcut(self.resample(x)), h, self.skip_rescale)


class Attention(nn.Module):
    """Self-attention with one head over all positions, around a shortcut."""

    def __init__(self, channels: int, skip_rescale: bool, init_scale: float):
        super().__init__()
        self.norm = group_norm(channels)
        # A variance of a tenth at the start keeps the attention almost uniform.
        self.query = Conv(channels, channels, 1, 0.1)
        self.key = Conv(channels, channels, 1, 0.1)
        self.value = Conv(channels, channels, 1, 0.1)
        self.output = Conv(channels, channels, 1, init_scale)
        self.skip_rescale = skip_rescale

    def forward(self, x: Tensor) -> Tensor:
        # One convolution for all three takes half the time of three.
        projections = (self.query, self.key, self.value)
        weight = torch.cat([layer.weight for layer in projections])
        bias = torch.cat([layer.bias for layer in projections])
        q, k, v = F.conv2d(self.norm(x), weight, bias).flatten(2).chunk(3, 1)
        # Fused attention kernels have no second derivative, so the weights are formed explicitly.
        weights = torch.softmax(q.mT @ k * x.shape[1] ** -0.5, -1)
        return combine(x, self.output((v @ weights.mT).view_as(x)), self.skip_rescale)
