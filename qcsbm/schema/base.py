"""What all models of the schema share: closed models, and numbers as YAML has them."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from qcsbm.runtime.errors import BadInput

# The tag of a member of a union whose type is the name of code of one's own, in paths of pydantic's
# errors.
OWN_CODE = "module:name"


class ConfigError(BadInput):
    """Bad input in an experiment file; the sentence names file and key path."""


def as_number(value: Any) -> Any:
    # YAML 1.1 reads 1e-4, without a point, as a string; so does Snakemake all numbers in the lists
    # and mappings that its option --config is given.
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", value):
        return float(value)
    return value


def as_whole(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value):
        return int(value)
    return value


def own_name(expected: str) -> Callable[[Any], Any]:
    """Refuses all but module:name, as something else than what is ``expected``."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and re.fullmatch(
            r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", value
        ):
            return value
        raise PydanticCustomError("own_name", "{expected}", {"expected": expected})

    return check


Whole = Annotated[int, BeforeValidator(as_whole)]
Number = Annotated[float, BeforeValidator(as_number)]
Positive = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
Count = Annotated[Whole, Field(gt=0)]
# As many as a standard error needs.
Several = Annotated[Whole, Field(ge=2)]
# It stands in tables and pictures; a bar would end a cell of a Markdown table.
Label = Annotated[str, Field(pattern=r"^[^\r\n|]*$")]
# It becomes part of file names.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Weights = Literal["ema", "raw"]
# What the network computes its products and convolutions in.
Precision = Literal["float32", "tf32", "bfloat16"]
# How products with the Jacobian are made that a backward pass does not give.
Derivatives = Literal["autograd", "finite_differences"]
# A single folder, so that no name leads out of the one where datasets are.
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def default_step(given: dict[str, Any]) -> float | None:
    """The step where the file has none: truncation grows with it, rounding at its inverse."""
    return 3e-3 if given.get("derivatives") == "finite_differences" else None


class Closed(BaseModel):
    """A model that refuses unknown keys and converts nothing but whole numbers to floats.

    What is said below a key is what config/README.md says of it.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
