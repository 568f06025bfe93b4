"""NCSN++, the noise-conditional U-Net of score-based models.

An encoder halves the resolution from level to level, a decoder doubles it again and reads the
encoder's feature maps; residual blocks are conditional on log σ. A pyramid carries the downsampled
input down the encoder (``progressive_input``) or the output up the decoder (``progressive``). The
defaults are the published "NCSN++ deep, continuous" for 32 × 32 images.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    Section 4.3 and Appendix H; https://arxiv.org/abs/2011.13456
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    UpsampleConv,
    combine,
    group_norm,
    linear,
)
from qcsbm.runtime.errors import BadInput

CHOICES = {
    "resblock": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "embedding": ("fourier",),
}


class NCSNpp(nn.Module):
    """NCSN++ for images of ``channels`` × ``image_size`` × ``image_size`` in [0, 1].

    Widths are ``nf`` times the entries of ``ch_mult``, one level each; every level has
    ``num_res_blocks`` residual blocks (one more in the decoder) that resample inside ("biggan") or
    beside them ("ddpm", there with a convolution if ``resamp_with_conv``), and attention at
    ``attn_resolutions``. ``fir`` resamples through the filter ``fir_kernel``; otherwise by means
    and repetition. ``progressive_combine`` says how an input skip joins the feature map.
    ``fourier_scale`` is the standard deviation of the frequencies of log σ, ``init_scale`` scales
    the initial variance of the last convolution of every block.

    Initial weights and the fixed frequencies come from PyTorch's global generator.

    Raises:
        BadInput: the image size cannot be halved from level to level, no level has an attention
            resolution, or group normalisation cannot split a width.
        ValueError: an unknown choice.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        nf: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 8,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        fir: bool = True,
        fir_kernel: Sequence[int] = (1, 3, 3, 1),
        skip_rescale: bool = True,
        resblock: str = "biggan",
        resamp_with_conv: bool = True,
        progressive: str = "none",
        progressive_input: str = "residual",
        progressive_combine: str = "sum",
        embedding: str = "fourier",
        fourier_scale: float = 16.0,
        init_scale: float = 0.0,
    ):
        super().__init__()
        _check_choices(
            resblock=resblock,
            progressive=progressive,
            progressive_input=progressive_input,
            progressive_combine=progressive_combine,
            embedding=embedding,
        )
        resolutions = _resolutions(image_size, len(ch_mult), attn_resolutions)
        blocks = Blocks(
            nf=nf,
            channels=channels,
            dropout=dropout,
            taps=tuple(fir_kernel) if fir else None,
            skip_rescale=skip_rescale,
            resblock=resblock,
            resamp_with_conv=resamp_with_conv,
            progressive=progressive,
            progressive_input=progressive_input,
            progressive_combine=progressive_combine,
            init_scale=init_scale,
        )
        self.resblock = resblock
        widths = [nf * multiplier for multiplier in ch_mult]
        attends = [resolution in attn_resolutions for resolution in resolutions]
        deepest = len(ch_mult) - 1

        self.embedding = nn.Sequential(
            FourierEmbedding(nf, fourier_scale),
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

        output_width: int | None = None
        self.decoder = nn.ModuleList()
        for level in reversed(range(deepest + 1)):
            stages = []
            for i in range(num_res_blocks + 1):
                attend = attends[level] and i == num_res_blocks
                stages.append(blocks.stage(width + skip_widths.pop(), widths[level], attend))
                width = widths[level]
            join, output_width = blocks.join_output(output_width, width)
            up = blocks.up(width) if level > 0 else None
            self.decoder.append(DecoderLevel(stages, join, up))

        self.head = None if progressive == "output_skip" else head(width, channels, init_scale)

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


@dataclass(frozen=True)
class Blocks:
    """What one configuration builds a level from; ``taps`` is None where nothing is filtered."""

    nf: int
    channels: int
    dropout: float
    taps: tuple[int, ...] | None
    skip_rescale: bool
    resblock: str
    resamp_with_conv: bool
    progressive: str
    progressive_input: str
    progressive_combine: str
    init_scale: float

    def residual(
        self, in_width: int, out_width: int, resample: nn.Module | None = None
    ) -> ResidualBlock:
        return ResidualBlock(
            in_width,
            out_width,
            embedding_features=4 * self.nf,
            dropout=self.dropout,
            skip_rescale=self.skip_rescale,
            init_scale=self.init_scale,
            shortcut_scale=1.0 if self.resblock == "biggan" else 0.1,
            resample=resample,
        )

    def stage(self, in_width: int, out_width: int, attends: bool) -> nn.Module:
        attention = Attention(out_width, self.skip_rescale, self.init_scale) if attends else None
        return Stage(self.residual(in_width, out_width), attention)

    def smoother(self) -> tuple[int, ...]:
        """Means and repetition are the filter with two equal taps."""
        return self.taps or (1, 1)

    def down_conv(self, in_width: int, out_width: int) -> nn.Module:
        if self.taps is None:
            return StridedConv(in_width, out_width)
        return DownsampleConv(in_width, out_width, self.taps)

    def up_conv(self, in_width: int, out_width: int) -> nn.Module:
        return UpsampleConv(in_width, out_width, self.smoother())

    def down(self, width: int) -> nn.Module:
        if self.resblock == "biggan":
            return self.residual(width, width, Downsample(self.smoother()))
        if not self.resamp_with_conv:
            return Resampling(Downsample(self.smoother()))
        return Resampling(self.down_conv(width, width))

    def up(self, width: int) -> nn.Module:
        if self.resblock == "biggan":
            return self.residual(width, width, Upsample(self.smoother()))
        if not self.resamp_with_conv:
            return Resampling(Upsample(self.smoother()))
        return Resampling(self.up_conv(width, width))

    def join_input(self, pyramid_width: int, width: int) -> tuple[nn.Module | None, int, int]:
        """How the input pyramid joins the encoder, and the widths of both after that."""
        if self.progressive_input == "residual":
            resample = self.down_conv(pyramid_width, width)
            return ResidualPyramid(resample, self.skip_rescale), width, width
        if self.progressive_input == "input_skip":
            concatenate = self.progressive_combine == "cat"
            join = InputSkip(Downsample(self.smoother()), self.channels, width, concatenate)
            return join, self.channels, 2 * width if concatenate else width
        return None, pyramid_width, width

    def join_output(
        self, pyramid_width: int | None, width: int
    ) -> tuple[nn.Module | None, int | None]:
        """How the output pyramid (None before it begins) joins the decoder, and its width then."""
        if self.progressive == "residual":
            if pyramid_width is None:
                return OutputStart(head(width, width)), width
            resample = self.up_conv(pyramid_width, width)
            return ResidualPyramid(resample, self.skip_rescale), width
        if self.progressive == "output_skip":
            to_image = head(width, self.channels, self.init_scale)
            if pyramid_width is None:
                return OutputStart(to_image), self.channels
            return OutputSkip(Upsample(self.smoother()), to_image), self.channels
        return None, None


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


def _check_choices(**chosen: str) -> None:
    for key, value in chosen.items():
        if value not in CHOICES[key]:
            raise ValueError(f"{key}: {value!r} is unknown, expected one of {CHOICES[key]}")


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
