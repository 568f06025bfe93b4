"""Files that ``torch.save`` wrote, of which nothing but tensors and plain values is unpickled."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qcsbm.runtime.errors import BadInput, MissingFile

# Optimizers and counters hold NumPy scalars; what makes them has one of two module names.
SCALAR: Any = np.float64(0).__reduce__()[0]
ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"),
]
ALLOWED += [(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
# How PyTorch's reader names what it does not make.
REFUSED = re.compile(r"(?:GLOBAL |<class ')(\w+(?:\.\w+)*)(?:'| was | whose )")
# A zip archive, or the pickle that came before it.
STARTS = (b"PK\x03\x04", b"\x80")


def load(path: str | Path, expected: str) -> Any:
    """What the file holds: tensors and plain values, in whatever layout; ``expected`` names it.

    Raises:
        MissingFile: there is no such file.
        BadInput: it holds more than tensors and plain values, or is no PyTorch file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"{path}: no such file, expected {expected}")
    with path.open("rb") as file:
        start = file.read(16)
    if not start.startswith(STARTS):
        found = f"a file that begins with {start!r}" if start else "an empty file"
        raise BadInput(f"{path}: found {found}, expected a PyTorch file")
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    # Damaged files lead the unpickler to almost any exception.
    except Exception as error:
        if refused := REFUSED.search(str(error)):
            raise BadInput(
                f"{path}: found the Python object {refused[1]}, expected tensors and plain values "
                "only, as nothing else is unpickled"
            ) from None
        raise BadInput(
            f"{path}: found a PyTorch file that is cut short or damaged, or another archive or "
            "pickle, expected a whole PyTorch file"
        ) from error
