"""The network of a score model."""

from typing import Annotated, Literal

from pydantic import Field

from qcsbm.schema.base import Closed, Count, Fraction, NonNegative, Positive


class NCSNpp(Closed):
    """NCSN++ (Song et al., 2021).

    Widths are ``nf`` times the entries of ``ch_mult``, one level each; every level has
    ``num_res_blocks`` residual blocks (one more in the decoder) that resample inside ("biggan") or
    beside them ("ddpm"), and attention at ``attn_resolutions``. ``fir`` resamples through the
    filter ``fir_kernel``; otherwise by means and repetition. ``progressive_input`` carries the
    input down the encoder, and ``progressive`` the output up the decoder; ``progressive_combine``
    says how an input skip joins the feature map. ``skip_rescale`` divides sums of branches by √2.
    ``fourier_scale`` is the standard deviation of the frequencies of log σ, ``init_scale`` scales
    the initial variance of the last convolution of every block.
    """

    type: Literal["ncsnpp"]
    nf: Count
    ch_mult: Annotated[list[Count], Field(min_length=1)]
    num_res_blocks: Count
    attn_resolutions: list[Count]
    dropout: Fraction = 0.0
    fir: bool = True
    fir_kernel: list[Count] = [1, 3, 3, 1]
    skip_rescale: bool = True
    resblock: Literal["biggan", "ddpm"] = "biggan"
    progressive: Literal["none", "output_skip"] = "none"
    progressive_input: Literal["none", "input_skip", "residual"] = "residual"
    progressive_combine: Literal["sum", "cat"] = "sum"
    fourier_scale: Positive = 16.0
    init_scale: NonNegative = 0.0


Network = NCSNpp
