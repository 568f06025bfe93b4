"""The network of a score model."""

from typing import Annotated, Literal

from pydantic import Field

from qcsbm.schema.base import Closed, Count, Fraction, NonNegative, Positive


class NCSNpp(Closed):
    """NCSN++; the keys are those of `qcsbm.nets.ncsnpp.NCSNpp`."""

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
    resamp_with_conv: bool = True
    progressive: Literal["none", "output_skip", "residual"] = "none"
    progressive_input: Literal["none", "input_skip", "residual"] = "residual"
    progressive_combine: Literal["sum", "cat"] = "sum"
    fourier_scale: Positive = 16.0
    init_scale: NonNegative = 0.0


Network = NCSNpp
