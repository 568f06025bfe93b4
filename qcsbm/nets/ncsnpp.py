"""NCSN++, the noise-conditional U-Net of score-based models.

An encoder halves the resolution from level to level, a decoder doubles it again and reads the
encoder's feature maps; residual blocks are conditional on log σ. A pyramid carries the downsampled
input down the encoder (``progressive_input``) or the output up the decoder (``progressive``).

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    Section 4.3 and Appendix H; https://arxiv.org/abs/2011.13456
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qcsbm.nets.layers import (
    Attention,
    Conv,
    Downsample,
    DownsampleConv,
    FourierEmbedding,
    ResidualBlock,
    StridedConv,
    Upsample,
    combine,
    group_norm,
    linear,
)
from qcsbm.runtime.errors import BadInput
from qcsbm.schema import networks


class NCSNpp(nn.Module):
    """NCSN++ for images of ``channels`` × ``image_size`` × ``image_size`` in [0, 1].

    Initial weights and the fixed frequencies come from PyTorch's global generator.

    Raises:
        BadInput: the image size cannot be halved from level to level, no level has an attention
            resolution, or group normalisation cannot split a width.
    """

    def __init__(self, image_size: int, channels: int, settings: networks.NCSNpp):
        super().__init__()
        nf, num_res_blocks = settings.nf, settings.num_res_blocks
        resolutions = _resolutions(image_size, len(settings.ch_mult), settings.attn_resolutions)
        blocks = Blocks(channels, settings)
        self.resblock = settings.resblock
        widths = [nf * multiplier for multiplier in settings.ch_mult]
        attends = [resolution in settings.attn_resolutions for resolution in resolutions]
        deepest = len(widths) - 1

        self.embedding = nn.Sequential(
            FourierEmbedding(nf, settings.fourier_scale),
            linear(2 * nf, 4 * nf),
            nn.SiLU(),
            linear(4 * nf, 4 * nf),
            nn.SiLU(),
        )
        self.stem = Conv(channels, nf, 3)

        width, pyramid_width, skip_widths = nf, channels, [nf]
        self.encoder = nn.ModuleList()
        for level in range(deepest + 1):
            stages = []
            for _ in range(num_res_blocks):
                stages.append(blocks.stage(width, widths[level], attends[level]))
                width = widths[level]
                skip_widths.append(width)
            down = join = None
            if level < deepest:
                down = blocks.down(width)
                join, pyramid_width, width = blocks.join_input(pyramid_width, width)
                skip_widths.append(width)
            self.encoder.append(EncoderLevel(stages, down, join))

        self.middle = nn.ModuleList(blocks.stage(width, width, attend) for attend in (True, False))

        self.decoder = nn.ModuleList()
        for level in reversed(range(deepest + 1)):
            stages = []
            for i in range(num_res_blocks + 1):
                attend = attends[level] and i == num_res_blocks
                stages.append(blocks.stage(width + skip_widths.pop(), widths[level], attend))
                width = widths[level]
            join = blocks.join_output(width, begins=level == deepest)
            up = blocks.up(width) if level > 0 else None
            self.decoder.append(DecoderLevel(stages, join, up))

        own_heads = settings.progressive == "output_skip"
        self.head = None if own_heads else head(width, channels, settings.init_scale)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The raw output at x (B, C, H, W) in data units and sigma (B,); shaped like x."""
        embedding = self.embedding(sigma)
        x = 2 * x - 1
        h, pyramid = self.stem(x), x
        skips = [h]
        for level in self.encoder:
            h, pyramid = level(h, embedding, pyramid, skips)
        for stage in self.middle:
            h = stage(h, embedding)
        for level in self.decoder:
            h, pyramid = level(h, embedding, pyramid, skips)
        return pyramid if self.head is None else self.head(h)


class Blocks:
    """What a level is built from."""

    def __init__(self, channels: int, settings: networks.NCSNpp):
        self.channels, self.settings = channels, settings
        # Means and repetition are the filter with two equal taps.
        self.taps = settings.fir_kernel if settings.fir else [1, 1]

    def residual(
        self, in_width: int, out_width: int, resample: nn.Module | None = None
    ) -> ResidualBlock:
        return ResidualBlock(
            in_width,
            out_width,
            embedding_features=4 * self.settings.nf,
            dropout=self.settings.dropout,
            skip_rescale=self.settings.skip_rescale,
            init_scale=self.settings.init_scale,
            shortcut_scale=1.0 if self.settings.resblock == "biggan" else 0.1,
            resample=resample,
        )

    def stage(self, in_width: int, out_width: int, attends: bool) -> nn.Module:
        scales = self.settings.skip_rescale, self.settings.init_scale
        attention = Attention(out_width, *scales) if attends else None
        return Stage(self.residual(in_width, out_width), attention)

    def down(self, width: int) -> nn.Module:
        return self.resampling(width, Downsample(self.taps))

    def up(self, width: int) -> nn.Module:
        return self.resampling(width, Upsample(self.taps))

    def resampling(self, width: int, resample: nn.Module) -> nn.Module:
        if self.settings.resblock == "biggan":
            return self.residual(width, width, resample)
        return Resampling(resample)

    def join_input(self, pyramid_width: int, width: int) -> tuple[nn.Module | None, int, int]:
        """How the input pyramid joins the encoder, and the widths of both after that."""
        if self.settings.progressive_input == "residual":
            resample = (
                DownsampleConv(pyramid_width, width, self.taps)
                if self.settings.fir
                else StridedConv(pyramid_width, width)
            )
            return ResidualPyramid(resample, self.settings.skip_rescale), width, width
        if self.settings.progressive_input == "input_skip":
            concatenate = self.settings.progressive_combine == "cat"
            join = InputSkip(Downsample(self.taps), self.channels, width, concatenate)
            return join, self.channels, 2 * width if concatenate else width
        return None, pyramid_width, width

    def join_output(self, width: int, begins: bool) -> nn.Module | None:
        """How the output pyramid joins the decoder, where it ``begins`` or further up."""
        if self.settings.progressive == "none":
            return None
        to_image = head(width, self.channels, self.settings.init_scale)
        return OutputStart(to_image) if begins else OutputSkip(Upsample(self.taps), to_image)


def head(in_width: int, out_width: int, scale: float = 1.0) -> nn.Sequential:
    """Normalise, activate and convolve 3 × 3."""
    return nn.Sequential(group_norm(in_width), nn.SiLU(), Conv(in_width, out_width, 3, scale))


class EncoderLevel(nn.Module):
    """Stages at one resolution, then one step down; appends every feature map to ``skips``."""

    def __init__(self, stages: list[nn.Module], down: nn.Module | None, join: nn.Module | None):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.down = down
        self.join = join

    def forward(
        self, h: Tensor, embedding: Tensor, pyramid: Tensor, skips: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        for stage in self.stages:
            h = stage(h, embedding)
            skips.append(h)
        if self.down is not None:
            h = self.down(h, embedding)
            if self.join is not None:
                h, pyramid = self.join(h, pyramid)
            skips.append(h)
        return h, pyramid


class DecoderLevel(nn.Module):
    """Stages at one resolution that take feature maps from ``skips``, then one step up."""

    def __init__(self, stages: list[nn.Module], join: nn.Module | None, up: nn.Module | None):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.join = join
        self.up = up

    def forward(
        self, h: Tensor, embedding: Tensor, pyramid: Tensor, skips: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        for stage in self.stages:
            h = stage(torch.cat([h, skips.pop()], 1), embedding)
        if self.join is not None:
            h, pyramid = self.join(h, pyramid)
        if self.up is not None:
            h = self.up(h, embedding)
        return h, pyramid


class Stage(nn.Module):
    """A residual block and, where the resolution asks for it, attention."""

    def __init__(self, block: nn.Module, attention: nn.Module | None):
        super().__init__()
        self.block = block
        self.attention = attention or nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(h, embedding))


class Resampling(nn.Module):
    """What resamples beside residual blocks, called like one; it ignores the noise level."""

    def __init__(self, resample: nn.Module):
        super().__init__()
        self.resample = resample

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.resample(h)


class InputSkip(nn.Module):
    """The downsampled input image, projected by a 1 × 1 convolution, joins the feature map."""

    def __init__(self, resample: nn.Module, channels: int, width: int, concatenate: bool):
        super().__init__()
        self.resample = resample
        self.project = Conv(channels, width, 1)
        self.concatenate = concatenate

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        pyramid = self.resample(pyramid)
        p = self.project(pyramid)
        return torch.cat([p, h], 1) if self.concatenate else p + h, pyramid


class ResidualPyramid(nn.Module):
    """A learnt resampling of the pyramid is added to the feature map; the sum becomes both."""

    def __init__(self, resample: nn.Module, skip_rescale: bool):
        super().__init__()
        self.resample = resample
        self.skip_rescale = skip_rescale

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        h = combine(self.resample(pyramid), h, self.skip_rescale)
        return h, h


class OutputStart(nn.Module):
    """The output pyramid takes the input's place: a projection of the deepest feature map."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        return h, self.head(h)


class OutputSkip(nn.Module):
    """The upsampled output image plus the projection of this level's feature map."""

    def __init__(self, resample: nn.Module, head: nn.Module):
        super().__init__()
        self.resample = resample
        self.head = head

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        return h, self.resample(pyramid) + self.head(h)


def _resolutions(image_size: int, levels: int, attn_resolutions: Sequence[int]) -> list[int]:
    """The image size of every level, the whole image first."""
    factor = 2 ** (levels - 1)
    if image_size % factor:
        raise BadInput(
            f"image_size: {image_size} is not divisible by {factor}, as the {levels} levels of "
            "ch_mult need"
        )
    resolutions = [image_size // 2**level for level in range(levels)]
    for resolution in attn_resolutions:
        if resolution not in resolutions:
            raise BadInput(
                f"attn_resolutions: no level has resolution {resolution}, expected some of "
                f"{resolutions}"
            )
    return resolutions
