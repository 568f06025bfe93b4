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
    """A network of one's own, ``type: module:Class`` (`qcsbm.nets.own`).

    All other keys are keyword arguments of the class.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, PlainValidator(_argument)]]

    type: Annotated[
        str, BeforeValidator(own_name("ncsnpp, or module:Class for a class of one's own"))
    ]


def _kind(value: Any) -> str:
    found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "ncsnpp" if found == "ncsnpp" else OWN_CODE


Network = Annotated[
    Annotated[NCSNpp, Tag("ncsnpp")] | Annotated[Own, Tag(OWN_CODE)], Discriminator(_kind)
]
