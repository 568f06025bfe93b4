"""The network of a score model: NCSN++, or a class of one's own."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, PlainValidator, Tag
from pydantic_core import PydanticCustomError

from qcsbm.schema.base import (
    OWN_CODE,
    Closed,
    Count,
    Fraction,
    NonNegative,
    Positive,
    as_number,
    as_whole,
    own_name,
)


class NCSNpp(Closed):
    """NCSN++ (Song et al., 2021)."""

    type: Literal["ncsnpp"]
    nf: Count
    """Width of the first level."""
    ch_mult: Annotated[list[Count], Field(min_length=1)]
    """Widths of all levels, in multiples of `nf`; each halves the resolution of the one before."""
    num_res_blocks: Count
    """Residual blocks of a level; the decoder has one more."""
    attn_resolutions: list[Count]
    """Resolutions, in pixels, that have attention."""
    dropout: Fraction = 0.0
    """Probability with which a block drops an activation."""
    fir: bool = True
    """Resample through the filter `fir_kernel` instead of by means and repetition."""
    fir_kernel: list[Count] = [1, 3, 3, 1]
    """Taps of that filter."""
    skip_rescale: bool = True
    """Divide sums of branches by √2."""
    resblock: Literal["biggan", "ddpm"] = "biggan"
    """Resample inside of blocks (`biggan`) or beside them (`ddpm`)."""
    progressive: Literal["none", "output_skip"] = "none"
    """Whether the output is carried up the decoder."""
    progressive_input: Literal["none", "input_skip", "residual"] = "residual"
    """Whether, and how, the input is carried down the encoder."""
    progressive_combine: Literal["sum", "cat"] = "sum"
    """How an input skip joins the feature map."""
    fourier_scale: Positive = 16.0
    """Standard deviation of the frequencies of log σ."""
    init_scale: NonNegative = 0.0
    """Scale of the initial variance of the last convolution of every block."""


def _argument(value: Any) -> Any:
    """``value``, if it is one that JSON has; text that looks like a number is one, as elsewhere."""
    if isinstance(value, list):
        return [_argument(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _argument(item) for key, item in value.items()}
    value = as_number(as_whole(value))
    plain = value is None or isinstance(value, str | int)
    if plain or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise PydanticCustomError(
        "argument", "finite numbers, text, true, false, null, or lists and mappings of these"
    )


class Own(Closed):
    """A network of one's own, see `qcsbm.nets.own`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, PlainValidator(_argument)]]

    type: Annotated[
        str, BeforeValidator(own_name("ncsnpp, or module:Class for a class of one's own"))
    ]
    """``module:Class``, in a file of the working directory; all other keys are its arguments."""


def _kind(value: Any) -> str:
    found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "ncsnpp" if found == "ncsnpp" else OWN_CODE


Network = Annotated[
    Annotated[NCSNpp, Tag("ncsnpp")] | Annotated[Own, Tag(OWN_CODE)], Discriminator(_kind)
]
