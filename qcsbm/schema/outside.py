"""A trained model from outside: a folder of diffusers, or a function of one's own."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from qcsbm.schema.base import (
    OWN_CODE,
    Closed,
    FolderName,
    NonNegative,
    Number,
    Positive,
    Whole,
    own_name,
)
from qcsbm.schema.sde import VE, VP


class EDM(Closed):
    """Time is the noise level itself; data are not scaled."""

    ends: ClassVar[tuple[str, str]] = ("sigma_min", "sigma_max")
    type: Literal["edm"]
    sigma_min: Positive
    """The lowest one."""
    sigma_max: Positive
    """The highest one."""


class RectifiedFlow(Closed):
    """The straight line from data at t = 0 to noise at t = 1."""

    type: Literal["rectified_flow"]


Index = Annotated[Whole, Field(ge=0)]
EXPECTED = "diffusers, or module:function for a function of one's own"
Schedule = Annotated[VE | VP | EDM | RectifiedFlow, Field(discriminator="type")]


class Diffusers(Closed):
    """A model of diffusers, see `qcsbm.adapters.diffusers.from_diffusers`."""

    type: Literal["diffusers"]
    path: str
    """That folder, with a U-Net and its scheduler."""
    label: Index | None = None
    """The class that it is conditioned on, if any."""
    guidance: NonNegative | None = None
    """Weight of classifier-free guidance, if any."""
    null_label: Index | None = None
    """The class that stands for none, for guidance."""
    variant: FolderName | None = None
    """Which files of weights are read, such as `fp16`."""
    dequantised: bool = False
    """Whether it was trained on (k + u)/L instead of k/(L − 1)."""


class Function(Closed):
    """A function of one's own (`qcsbm.score.kinds`), or a `qcsbm.adapters.field.Field`."""

    type: Annotated[str, BeforeValidator(own_name(EXPECTED))]
    """``module:function``, in a file of the working directory, of x (B, C, H, W) and t (B,)."""
    kind: Literal["score", "epsilon", "x0", "v", "denoiser", "velocity"] | None = None
    """What its values are; a `Field` says it by itself."""
    schedule: Schedule | None = None
    """What its time means; a `Field` says it by itself."""
    data_range: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    """The lowest and the highest value of its data; a `Field` says it by itself."""
    files: list[str] = []
    """What the code reads by itself, such as weights."""
    dequantised: bool = False
    """Whether it was trained on (k + u)/L instead of k/(L − 1)."""


def _kind(value: Any) -> str:
    found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "diffusers" if found == "diffusers" else OWN_CODE


Outside = Annotated[
    Annotated[Diffusers, Tag("diffusers")] | Annotated[Function, Tag(OWN_CODE)],
    Discriminator(_kind),
]


def model_name(model: Diffusers | Function) -> str:
    """What tables call the model: its folder, with class and guidance, or its function."""
    if isinstance(model, Function):
        return model.type
    label = "" if model.label is None else f", class {model.label}"
    guidance = "" if model.guidance is None else f", guidance {model.guidance:g}"
    return f"{model.path}{label}{guidance}"
