"""Arrays in .npy and .npz files: nothing is pickled or unpickled, no header is believed.

References:
    The .npy format; https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import atomic

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
INFLATION = 1032  # bytes that deflate makes of one, at most


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Write ``array`` as .npy, atomically."""
    # NumPy would add a suffix to the name of a file, and leave the file of that name empty.
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def write_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    """Write ``arrays`` as .npz, atomically."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_array(path: str | Path, key: str | None = None) -> np.ndarray:
    """The array in a .npy file, memory-mapped, or the array ``key`` of an .npz file.

    Raises:
        BadInput: there is no such array, it holds Python objects, or its header does not fit the
            length of the file. All of this is checked before memory is taken.
    """
    path = Path(path)
    try:
        if key is None:
            with path.open("rb") as file:
                _check_header(file, path.stat().st_size)
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{key}.npy")
            # The directory of the archive, too, may announce more than there is.
            if (
                member.compress_type not in COMPRESSIONS
                or member.file_size > INFLATION * path.stat().st_size
            ):
                raise ValueError(f"{member.file_size} bytes that deflate cannot have packed")
            with archive.open(member) as file:
                _check_header(file, member.file_size)
            with archive.open(member) as file:
                return npy.read_array(file, allow_pickle=False)
    # Damaged headers and archives lead NumPy and zipfile to almost any exception.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        expected = "a NumPy array" if key is None else f"an .npz file with an array {key!r}"
        raise BadInput(f"{path}: found nothing usable ({reason}), expected {expected}") from None


def array_names(path: str | Path) -> list[str]:
    """The names of the arrays in an .npz file; BadInput if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:
        raise BadInput(f"{path}: found nothing usable ({error}), expected an .npz file") from None
    return [name.removesuffix(".npy") for name in names if name.endswith(".npy")]


def _check_header(file: IO[bytes], size: int) -> None:
    """Raise ValueError unless the header of an array fits the ``size`` of the file in bytes."""
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"format version {version}")
    shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("Python objects")
    announced = math.prod(shape) * dtype.itemsize
    if announced != size - file.tell():
        raise ValueError(
            f"{size - file.tell()} bytes for the {announced} of {dtype} values of shape {shape}"
        )
