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
    """Time is the noise level itself, from ``sigma_min`` to ``sigma_max``; data are not scaled."""

    ends: ClassVar[tuple[str, str]] = ("sigma_min", "sigma_max")
    type: Literal["edm"]
    sigma_min: Positive
    sigma_max: Positive


class RectifiedFlow(Closed):
    """The straight line from data at t = 0 to noise at t = 1."""

    type: Literal["rectified_flow"]


Index = Annotated[Whole, Field(ge=0)]
EXPECTED = "diffusers, or module:function for a function of one's own"
Schedule = Annotated[VE | VP | EDM | RectifiedFlow, Field(discriminator="type")]


class Diffusers(Closed):
    """The folder ``path`` that diffusers wrote, with a U-Net and its scheduler.

    ``label``, ``guidance``, ``null_label`` and ``variant`` are those of
    `qcsbm.adapters.diffusers.from_diffusers`. ``dequantised`` says that it was trained on
    (k + u)/L instead of k/(L − 1).
    """

    type: Literal["diffusers"]
    path: str
    label: Index | None = None
    guidance: NonNegative | None = None
    null_label: Index | None = None
    variant: FolderName | None = None
    dequantised: bool = False


class Function(Closed):
    """A function of one's own, ``type: module:function``, of x (B, C, H, W) and t (B,).

    Its values are of the ``kind`` (`qcsbm.score.kinds`), its time is that of the ``schedule``, and
    its data lie in ``data_range``; a `qcsbm.adapters.field.Field` says all three by itself.
    ``files`` are what the code reads by itself, such as weights. ``dequantised`` is that of
    `Diffusers`.
    """

    type: Annotated[str, BeforeValidator(own_name(EXPECTED))]
    kind: Literal["score", "epsilon", "x0", "v", "denoiser", "velocity"] | None = None
    schedule: Schedule | None = None
    data_range: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    files: list[str] = []
    dequantised: bool = False


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
