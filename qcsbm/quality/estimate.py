"""A number with its error."""

from typing import NamedTuple


class Estimate(NamedTuple):
    """A measured value and its standard error, None where it has none."""

    value: float
    stderr: float | None
